// Attention over codes in a cache on GPUs. What it computes, and its inputs and attributes, stands
// in ort_ops/cached_attention/op.py.
#include "cached_attention/launch.h"

#include "attention/launch.h"
#include "node.h"
#include "operators.h"

namespace dqx {
namespace {

enum Input {
  Q, K, V, K_CACHE, K_SCALES, V_CACHE, START, KEY_BLOCK, REACH, K_MEAN, V_SCALE, V_ZERO, COS, SIN
};

struct CachedOp : DeviceOp {
  bool rotary;
};

struct CachedNode {
  CachedNode(const CachedOp& op, const ort::Api& api, const ort::KernelInfo* info);
  void compute(ort::Context* context) const;

  ort::Api api;
  bool rotary;
  CachedAttention form{};  // all but what inputs say

 private:
  CachedAttention call(const Tensor* in) const;
  void check_caches(const CachedAttention& call, const Tensor* in) const;
  int64_t stored(int32_t bits, int64_t width) const { return bits == 4 ? width / 2 : width; }
};

CachedNode::CachedNode(const CachedOp& op, const ort::Api& api, const ort::KernelInfo* info)
    : api(api), rotary(op.rotary) {
  form.heads = whole(api, info, "heads");
  form.kv_heads = whole(api, info, "kv_heads");
  form.q_top = whole(api, info, "q_top");
  form.p_top = whole(api, info, "p_top");
  form.k_bits = whole(api, info, "k_bits");
  form.v_bits = whole(api, info, "v_bits");
  if (form.kv_heads < 1 || form.heads < 1 || form.heads % form.kv_heads != 0) {
    fail(api, "dqexport: heads are not a multiple of kv_heads");
  }
  const bool codes = form.v_bits == 8 || form.v_bits == 4;
  if ((form.k_bits != 8 && form.k_bits != 4) || (!codes && form.v_bits != 16)) {
    fail(api, "dqexport: k_bits are 8 or 4, and v_bits 8, 4 or 16");
  }
  const bool top = codes ? form.p_top >= 1 && form.p_top <= 255 : form.p_top == 0;
  if (!top || form.q_top < 1 || form.q_top > 127) {
    fail(api, "dqexport: q_top is 1 to 127, and p_top 1 to 255, or 0 with v_bits 16");
  }
}

// The sizes; k_cache and q have to fit each other.
CachedAttention CachedNode::call(const Tensor* in) const {
  const std::vector<int64_t>&q = in[Q].shape, &cache = in[K_CACHE].shape;
  if (q.size() != 3 || cache.size() != 4) {
    fail(api, "dqexport: q has three axes, and k_cache four");
  }
  const int64_t width = q[2] / form.heads, capacity = cache[2];
  const bool halved = width % 2 == 0 || (form.k_bits != 4 && form.v_bits != 4);
  if (q[2] % form.heads != 0 || width < 1 || width > MOST_HEAD_WIDTH || !halved) {
    fail(api, "dqexport: heads have 1 to 256 channels, in pairs with 4 bits");
  }
  const int64_t most = form.p_top ? (int64_t{1} << 31) / (255 * form.p_top) : INT32_MAX;
  if (capacity < 1 || q[1] > capacity || capacity > most) {
    fail(api, "dqexport: the cache has no room for q, or more positions than can be summed");
  }
  CachedAttention call = form;
  call.batch = static_cast<int32_t>(q[0]);
  call.queries = static_cast<int32_t>(q[1]);
  call.capacity = static_cast<int32_t>(capacity);
  call.width = static_cast<int32_t>(width);
  call.type = float_of(in[Q].type);
  if (!rotary) return call;
  const int64_t half = in[COS].shape.empty() ? 0 : in[COS].shape.back();
  if (half < 1 || 2 * half > width) fail(api, "dqexport: cos does not fit the heads");
  expect(api, "cos", in[COS], {q[0], q[1], half});
  expect(api, "sin", in[SIN], {q[0], q[1], half});
  call.rotary = static_cast<int32_t>(2 * half);
  return call;
}

void CachedNode::check_caches(const CachedAttention& call, const Tensor* in) const {
  const int64_t rows = call.batch, fed = call.queries, capacity = call.capacity;
  const int64_t heads = call.kv_heads, width = call.width;
  for (const Input i : {K, V}) expect(api, "k or v", in[i], {rows, fed, heads * width});
  expect(api, "k_cache", in[K_CACHE], {rows, heads, capacity, stored(call.k_bits, width)});
  expect(api, "k_scales", in[K_SCALES], {rows, heads, capacity, 1});
  expect(api, "v_cache", in[V_CACHE], {rows, heads, capacity, stored(call.v_bits, width)});
  if ((call.v_bits < 16) != (in[V_CACHE].type == ort::INT8)) {
    fail(api, "dqexport: v_cache is of another type than v_bits say");
  }
  expect(api, "start", in[START], {rows});
  expect(api, "key_block", in[KEY_BLOCK], {rows, capacity});
  expect(api, "reach", in[REACH], {rows, fed});
  for (const Input i : {K_MEAN, V_SCALE, V_ZERO}) {
    if (in[i].count != heads * width) fail(api, "dqexport: k_mean or scales do not fit the heads");
  }
}

void CachedNode::compute(ort::Context* context) const {
  Tensor in[SIN + 1];
  for (size_t i = 0; i < size_t{rotary ? SIN + 1u : COS + 0u}; ++i) in[i] = input(api, context, i);
  const CachedAttention call = this->call(in);
  check_caches(call, in);
  const Output y = output(api, context, 0, in[Q].shape);
  const Output k_cache = output(api, context, 1, in[K_CACHE].shape);
  const Output k_scales = output(api, context, 2, in[K_SCALES].shape);
  const Output v_cache = output(api, context, 3, in[V_CACHE].shape);
  if (call.batch == 0) return;
  CachedOperands given{};
  given.q = in[Q].data;
  given.k = in[K].data;
  given.v = in[V].data;
  given.k_cache = static_cast<const int8_t*>(in[K_CACHE].data);
  given.k_scales = in[K_SCALES].data;
  given.v_cache = in[V_CACHE].data;
  given.start = static_cast<const int64_t*>(in[START].data);
  given.key_block = static_cast<const int32_t*>(in[KEY_BLOCK].data);
  given.reach = static_cast<const int32_t*>(in[REACH].data);
  given.k_mean = in[K_MEAN].data;
  given.v_scale = in[V_SCALE].data;
  given.v_zero = in[V_ZERO].data;
  given.cos = in[COS].data;
  given.sin = in[SIN].data;
  const CachedResults results{y.data, static_cast<int8_t*>(k_cache.data), k_scales.data,
                              v_cache.data};
  const Workspace room(api, context, y, cached_attention_workspace(call));
  launched(api,
           launch_cached_attention(call, given, results, room.data(), stream(api, context)));
}

// With values as codes, or as floats of `type`: types of outputs have to be known.
CachedOp cached(bool rotary, int type, bool codes) {
  const char* name = rotary ? "DqxCachedAttentionRotary" : "DqxCachedAttention";
  const size_t inputs = rotary ? SIN + 1 : COS;
  CachedOp op = device_operator<CachedOp, CachedNode>(name, inputs, 4);
  op.rotary = rotary;
  for (int& each : op.types_) each = type;
  op.types_[K_CACHE] = ort::INT8;
  op.types_[V_CACHE] = codes ? ort::INT8 : type;
  op.types_[START] = ort::INT64;
  op.types_[KEY_BLOCK] = op.types_[REACH] = ort::INT32;
  const Input like[] = {Q, K_CACHE, K_SCALES, V_CACHE};
  for (size_t i = 0; i < 4; ++i) op.output_types_[i] = op.types_[like[i]];
  in_place<-1, K_CACHE, K_SCALES, V_CACHE>(op);
  return op;
}

const CachedOp OPS[] = {
    cached(false, ort::FLOAT, true), cached(false, ort::FLOAT, false),
    cached(false, ort::FLOAT16, true), cached(false, ort::FLOAT16, false),
    cached(true, ort::FLOAT, true), cached(true, ort::FLOAT, false),
    cached(true, ort::FLOAT16, true), cached(true, ort::FLOAT16, false),
};

}  // namespace

ort::Status* add_cached_attention(const ort::Api& api, ort::Domain* domain) {
  return add_all(api, domain, OPS);
}

}  // namespace dqx
