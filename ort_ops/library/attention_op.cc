// Attention as an operator of ONNX Runtime. What it computes, and its inputs and attributes, stands in
// ort_ops/attention/op.py.
#include <atomic>
#include <new>

#include "attention/attention.h"
#include "linear_w4a8/kernel.h"
#include "node.h"
#include "operators.h"
#include "workspace.h"

namespace {

using dqx::AttentionCall;
using dqx::AttentionForm;
using dqx::AttentionSizes;
using dqx::check;
using dqx::fail;
using dqx::MOST_CHANNELS;
using dqx::Tensor;
using dqx::tensor;

constexpr int BOOL = 9;  // ONNX's number of the type of elements

struct AttentionOp : ort::CustomOp {
  const char* name_;
  size_t inputs_;
};

struct AttentionNode {
  AttentionNode(const AttentionOp& op, const ort::Api& api, const ort::KernelInfo* info);
  void compute(ort::Context* context) const;

  ort::Api api;
  const dqx::AttentionKernel* kernel = nullptr;
  AttentionForm form;
};

int top(const ort::Api& api, const ort::KernelInfo* info, const char* name) {
  int64_t value = 0;
  check(api.attribute(info, name, &value));
  if (value < 1 || value > 255) fail(api, "dqexport: a largest code is between 1 and 255");
  return static_cast<int>(value);
}

AttentionNode::AttentionNode(const AttentionOp&, const ort::Api& api, const ort::KernelInfo* info)
    : api(api) {
  const dqx::Kernel* chosen = dqx::choose_kernel();
  if (chosen == nullptr) {
    fail(api, "dqexport: DQX_KERNEL names no kernel that runs on this machine");
  }
  kernel = &dqx::attention_kernel(chosen->name);
  check(api.attribute(info, "heads", &form.heads));
  check(api.attribute(info, "kv_heads", &form.kv_heads));
  form.q_top = top(api, info, "q_top");
  form.k_top = top(api, info, "k_top");
  form.v_top = top(api, info, "v_top");
  form.p_top = top(api, info, "p_top");
  if (form.q_top > 127 || form.k_top > 127) fail(api, "dqexport: q_top and k_top are at most 127");
  if (form.kv_heads < 1 || form.heads % form.kv_heads != 0) {
    fail(api, "dqexport: heads are not a multiple of kv_heads");
  }
}

struct Work {
  const AttentionNode& node;
  const AttentionCall& call;
  const AttentionSizes& sizes;
  uint8_t* workspace;
  int64_t blocks;  // of queries, for each head and sequence
  std::atomic<bool> starved{false};  // a task had no memory: exceptions may not cross the runtime
};

void prepare(void* user, size_t number) {
  const Work& w = *static_cast<const Work*>(user);
  const auto index = static_cast<int64_t>(number);
  w.node.kernel->prepare(w.call, w.sizes, index, head_keys(w.sizes, w.workspace, index));
}

void attend(void* user, size_t number) {
  Work& w = *static_cast<Work*>(user);
  uint8_t* scratch = nullptr;
  try {
    scratch = dqx::workspace<dqx::Use::TASK>(static_cast<size_t>(w.sizes.scratch));
  } catch (const std::bad_alloc&) {
    w.starved = true;
    return;
  }
  const AttentionForm& form = w.call.form;
  const auto task = static_cast<int64_t>(number);
  const int64_t block = task % w.blocks, head = task / w.blocks % form.heads;
  const int64_t sequence = task / w.blocks / form.heads;
  const int64_t kv_head = sequence * form.kv_heads + head / (form.heads / form.kv_heads);
  const int64_t first = w.call.queries * block / w.blocks;
  const int64_t last = w.call.queries * (block + 1) / w.blocks;
  w.node.kernel->attend(w.call, w.sizes, sequence, head, first, last,
                        head_keys(w.sizes, w.workspace, kv_head), scratch);
}

void AttentionNode::compute(ort::Context* context) const {
  Tensor inputs[7];
  for (size_t i = 0; i < 7; ++i) {
    const ort::Value* value = nullptr;
    check(api.input(context, i, &value));
    inputs[i] = tensor(api, value);
    const bool mask = i == 3 || i == 4;
    if (inputs[i].type != (mask ? BOOL : ort::FLOAT)) {
      fail(api, "dqexport: attention takes fp32, and bool as masks");
    }
  }
  const Tensor &q = inputs[0], &k = inputs[1], &v = inputs[2], &visible = inputs[3];
  if (q.shape.size() != 3 || k.shape.size() != 4 || v.shape != k.shape) {
    fail(api, "dqexport: q has three axes, k and v have four and one shape");
  }
  AttentionCall call;
  call.form = form;
  call.batch = q.shape[0];
  call.queries = q.shape[1];
  call.keys = k.shape[2];
  call.form.width = k.shape[3];
  const int64_t width = call.form.width;
  if (q.shape[2] != form.heads * width || k.shape[0] != call.batch ||
      k.shape[1] != form.kv_heads || width > MOST_CHANNELS) {
    fail(api, "dqexport: q, k and v do not fit the heads");
  }
  if (visible.count != call.batch * call.queries * call.keys ||
      inputs[4].count != call.batch * call.keys) {
    fail(api, "dqexport: the masks do not fit queries and keys");
  }
  if (inputs[5].count != form.kv_heads * width || inputs[6].count != form.kv_heads * width) {
    fail(api, "dqexport: the scales of values do not fit the heads");
  }
  call.q = static_cast<const float*>(q.data);
  call.k = static_cast<const float*>(k.data);
  call.v = static_cast<const float*>(v.data);
  call.visible = static_cast<const bool*>(visible.data);
  call.common = static_cast<const bool*>(inputs[4].data);
  call.v_scale = static_cast<const float*>(inputs[5].data);
  call.v_zero = static_cast<const float*>(inputs[6].data);
  ort::Value* output = nullptr;
  check(api.output(context, 0, q.shape.data(), q.shape.size(), &output));
  void* y = nullptr;
  check(api.data(output, &y));
  call.y = static_cast<float*>(y);
  if (q.count == 0) return;
  if (call.keys == 0) fail(api, "dqexport: no keys to attend to");
  const AttentionSizes sizes(call);
  const int64_t heads = call.batch * form.kv_heads;
  uint8_t* workspace = dqx::workspace<dqx::Use::CALL>(static_cast<size_t>(heads * sizes.bytes));
  Work work{*this, call, sizes, workspace, (call.queries + sizes.rows - 1) / sizes.rows};
  check(api.parallel_for(context, prepare, static_cast<size_t>(heads), &work));
  const int64_t tasks = call.batch * form.heads * work.blocks;
  check(api.parallel_for(context, attend, static_cast<size_t>(tasks), &work));
  if (work.starved) fail(api, "dqexport: not enough memory for attention");
}

const AttentionOp OP = dqx::operator_of<AttentionOp, AttentionNode>("DqxAttention", 7);

}  // namespace

namespace dqx {

ort::Status* add_attention(const ort::Api& api, ort::Domain* domain) {
  return api.add_op(domain, &OP);
}

}  // namespace dqx
