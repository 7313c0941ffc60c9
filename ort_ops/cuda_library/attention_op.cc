// Attention on quantized operands on GPUs. What it computes, and its inputs and attributes, stands
// in ort_ops/attention/op.py.
#include "attention/launch.h"

#include "node.h"
#include "operators.h"

namespace dqx {
namespace {

enum Input { Q, K, V, VISIBLE, COMMON, V_SCALE, V_ZERO, INPUTS };

struct AttentionNode {
  AttentionNode(const DeviceOp&, const ort::Api& api, const ort::KernelInfo* info);
  void compute(ort::Context* context) const;

  ort::Api api;
  Attention form{};  // all but what inputs say
};

AttentionNode::AttentionNode(const DeviceOp&, const ort::Api& api, const ort::KernelInfo* info)
    : api(api) {
  form.heads = whole(api, info, "heads");
  form.kv_heads = whole(api, info, "kv_heads");
  form.q_top = whole(api, info, "q_top");
  form.k_top = whole(api, info, "k_top");
  form.v_top = whole(api, info, "v_top");
  form.p_top = whole(api, info, "p_top");
  if (form.kv_heads < 1 || form.heads < 1 || form.heads % form.kv_heads != 0) {
    fail(api, "dqexport: heads are not a multiple of kv_heads");
  }
  const auto within = [](int32_t top, int32_t most) { return top >= 1 && top <= most; };
  const bool floats = form.v_top == 0 && form.p_top == 0;
  if (!within(form.q_top, 127) || !within(form.k_top, 127) ||
      !(floats || (within(form.v_top, 255) && within(form.p_top, 255)))) {
    fail(api, "dqexport: q_top and k_top are 1 to 127, v_top and p_top 1 to 255 or both 0");
  }
}

void AttentionNode::compute(ort::Context* context) const {
  Tensor in[INPUTS];
  for (size_t i = 0; i < INPUTS; ++i) in[i] = input(api, context, i);
  const std::vector<int64_t>&q = in[Q].shape, &k = in[K].shape;
  if (q.size() != 3 || k.size() != 4) fail(api, "dqexport: q has three axes, and k has four");
  const int64_t width = k[3], keys = k[2];
  if (keys == 0 || width < 1 || width > MOST_HEAD_WIDTH) {
    fail(api, "dqexport: attention needs keys, of 1 to 256 channels");
  }
  expect(api, "q", in[Q], {q[0], q[1], form.heads * width});
  expect(api, "k", in[K], {q[0], form.kv_heads, keys, width});
  expect(api, "v", in[V], k);
  expect(api, "visible", in[VISIBLE], {q[0], 1, q[1], keys});
  expect(api, "common", in[COMMON], {q[0], keys});
  for (const Input channels : {V_SCALE, V_ZERO}) {
    if (in[channels].count != form.kv_heads * width) {
      fail(api, "dqexport: the scales of values do not fit the heads");
    }
  }
  const Output y = output(api, context, 0, q);
  if (in[Q].count == 0) return;
  Attention call = form;
  call.batch = static_cast<int32_t>(q[0]);
  call.queries = static_cast<int32_t>(q[1]);
  call.keys = static_cast<int32_t>(keys);
  call.width = static_cast<int32_t>(width);
  call.type = float_of(in[Q].type);
  const Workspace room(api, context, y, attention_workspace(call));
  launched(api, launch_attention(call, in[Q].data, in[K].data, in[V].data,
                                 static_cast<const bool*>(in[VISIBLE].data),
                                 static_cast<const bool*>(in[COMMON].data), in[V_SCALE].data,
                                 in[V_ZERO].data, y.data, room.data(), stream(api, context)));
}

DeviceOp attention(int type) {
  DeviceOp op = device_operator<DeviceOp, AttentionNode>("DqxAttention", INPUTS, 1);
  for (const Input i : {Q, K, V, V_SCALE, V_ZERO}) op.types_[i] = type;
  op.types_[VISIBLE] = op.types_[COMMON] = ort::BOOL;
  op.output_types_[0] = type;
  return op;
}

const DeviceOp OPS[] = {attention(ort::FLOAT), attention(ort::FLOAT16), attention(ort::BFLOAT16)};

}  // namespace

ort::Status* add_device_attention(const ort::Api& api, ort::Domain* domain) {
  return add_all(api, domain, OPS);
}

}  // namespace dqx
