// Attention over a cache of codes as a plugin of TensorRT. What it computes stands in
// ort_ops/cached_attention/op.py.
#include "ort_ops/cached_attention/launch.h"

#include "ort_ops/attention/launch.h"
#include "trt_plugins/library/creators.h"
#include "trt_plugins/library/shapes.h"

namespace dqx {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

struct CachedKind {
  const char* name;
  bool rotary, float_values;
};

enum Input {
  Q, K, V, K_CACHE, K_SCALES, V_CACHE, START, KEY_BLOCK, REACH, K_MEAN, V_SCALE, V_ZERO, COS, SIN
};

struct CachedNode {
  using Kind = CachedKind;
  using Build = BuildInPlace<-1, K_CACHE, K_SCALES, V_CACHE>;
  static constexpr int32_t LIKE[] = {Q, K_CACHE, K_SCALES, V_CACHE};

  Kind kind;
  int32_t heads = 0, kv_heads = 0;
  int32_t q_top = 0, p_top = 0;
  int32_t k_bits = 0, v_bits = 0;

  template <class Visit>
  void attributes(const Visit& visit) {
    visit("heads", heads);
    visit("kv_heads", kv_heads);
    visit("q_top", q_top);
    visit("p_top", p_top);
    visit("k_bits", k_bits);
    visit("v_bits", v_bits);
  }

  void check_attributes() const {
    if (heads <= 0 || kv_heads <= 0 || heads % kv_heads) {
      refuse("heads = %d have to be a multiple of kv_heads = %d", heads, kv_heads);
    }
    if (q_top < 1 || q_top > 127) refuse("q_top = %d has to be between 1 and 127", q_top);
    if (k_bits != 8 && k_bits != 4) refuse("k_bits = %d has to be 8 or 4", k_bits);
    const bool fits = kind.float_values ? v_bits == 16 : v_bits == 8 || v_bits == 4;
    if (!fits) refuse("v_bits = %d has to be %s", v_bits, kind.float_values ? "16" : "8 or 4");
    const int32_t least = kind.float_values ? 0 : 1, most = kind.float_values ? 0 : 255;
    if (p_top < least || p_top > most) {
      refuse("p_top = %d has to be between %d and %d", p_top, least, most);
    }
  }

  int inputs() const { return kind.rotary ? SIN + 1 : COS; }

  bool takes(int place, const DataType* types) const {
    switch (place) {
      case K_CACHE: return types[place] == DataType::kINT8;
      case V_CACHE: return types[place] == (v_bits == 16 ? types[Q] : DataType::kINT8);
      case START: return types[place] == DataType::kINT64;
      case KEY_BLOCK:
      case REACH: return types[place] == DataType::kINT32;
      default: return is_float(types[place]) && types[place] == types[Q];
    }
  }

  void check(const Dims* inputs) const {
    const Dims &q = inputs[Q], &cache = inputs[K_CACHE];
    if (q.nbDims != 3 || cache.nbDims != 4) {
      refuse("q %s has to have three axes, and k_cache %s four", text_of(q).c_str(),
             text_of(cache).c_str());
    }
    const int64_t rows = q.d[0], fed = q.d[1], capacity = cache.d[2];
    const int64_t width = q.d[2] < 0 ? -1 : q.d[2] / heads;
    const int64_t each = width < 0 ? -1 : kv_heads * width;
    if (width == 0 || width > MOST_HEAD_WIDTH || (width > 0 && q.d[2] % heads)) {
      refuse("q %s has to have %d heads of 1 to %d channels", text_of(q).c_str(), heads,
             MOST_HEAD_WIDTH);
    }
    if (width > 0 && width % 2 && (k_bits == 4 || v_bits == 4)) {
      refuse("4-bit codes share a byte: heads of %lld channels", static_cast<long long>(width));
    }
    if (capacity == 0 || (capacity > 0 && fed > capacity)) {
      refuse("k_cache %s has no room for q %s", text_of(cache).c_str(), text_of(q).c_str());
    }
    const int64_t most = p_top ? (int64_t{1} << 31) / (255 * p_top) : capacity;  // of integer sums
    if (capacity > most) {
      refuse("k_cache %s has to have no more than %lld positions", text_of(cache).c_str(),
             static_cast<long long>(most));
    }
    expect("k", inputs[K], {3, {rows, fed, each}});
    expect("v", inputs[V], {3, {rows, fed, each}});
    expect("k_cache", cache, {4, {rows, kv_heads, capacity, bytes(k_bits, width)}});
    expect("k_scales", inputs[K_SCALES], {4, {rows, kv_heads, capacity, 1}});
    expect("v_cache", inputs[V_CACHE], {4, {rows, kv_heads, capacity, bytes(v_bits, width)}});
    expect("start", inputs[START], {1, {rows}});
    expect("key_block", inputs[KEY_BLOCK], {2, {rows, capacity}});
    expect("reach", inputs[REACH], {2, {rows, fed}});
    expect_channels("k_mean", inputs[K_MEAN], kv_heads, width);
    expect_channels("v_scale", inputs[V_SCALE], kv_heads, width);
    expect_channels("v_zero", inputs[V_ZERO], kv_heads, width);
    if (kind.rotary) check_turns(inputs, rows, fed, width);
  }

  void set_shapes(const nvinfer1::DimsExprs* inputs, nvinfer1::DimsExprs* outputs) const {
    for (const int32_t input : LIKE) *outputs++ = inputs[input];
  }

  size_t workspace(const nvinfer1::PluginTensorDesc* inputs) const {
    return cached_attention_workspace(call(inputs));
  }

  int run(const nvinfer1::PluginTensorDesc* inputs, const void* const* tensors,
          void* const* outputs, void* workspace, Stream stream) const {
    CachedOperands operands{};
    operands.q = tensors[Q];
    operands.k = tensors[K];
    operands.v = tensors[V];
    operands.k_cache = static_cast<const int8_t*>(tensors[K_CACHE]);
    operands.k_scales = tensors[K_SCALES];
    operands.v_cache = tensors[V_CACHE];
    operands.start = static_cast<const int64_t*>(tensors[START]);
    operands.key_block = static_cast<const int32_t*>(tensors[KEY_BLOCK]);
    operands.reach = static_cast<const int32_t*>(tensors[REACH]);
    operands.k_mean = tensors[K_MEAN];
    operands.v_scale = tensors[V_SCALE];
    operands.v_zero = tensors[V_ZERO];
    operands.cos = kind.rotary ? tensors[COS] : nullptr;
    operands.sin = kind.rotary ? tensors[SIN] : nullptr;
    const CachedResults results{outputs[0], static_cast<int8_t*>(outputs[1]), outputs[2],
                                outputs[3]};
    return launch_cached_attention(call(inputs), operands, results, workspace, stream);
  }

 private:
  // Elements of a cache for `width` channels: values of 16 bits are as they are.
  static int64_t bytes(int32_t bits, int64_t width) {
    return width < 0 ? -1 : bits == 4 ? width / 2 : width;
  }

  static void check_turns(const Dims* inputs, int64_t rows, int64_t fed, int64_t width) {
    const Dims& cos = inputs[COS];
    const int64_t half = cos.nbDims == 3 ? cos.d[2] : -1;
    expect("cos", cos, {3, {rows, fed, -1}});
    if (half == 0 || (width >= 0 && 2 * half > width)) {
      refuse("cos %s has to turn pairs of %lld channels", text_of(cos).c_str(),
             static_cast<long long>(width));
    }
    expect("sin", inputs[SIN], {3, {rows, fed, half}});
  }

  CachedAttention call(const nvinfer1::PluginTensorDesc* inputs) const {
    const Dims &q = inputs[Q].dims, &cache = inputs[K_CACHE].dims;
    CachedAttention call{};
    call.batch = static_cast<int32_t>(q.d[0]);
    call.heads = heads;
    call.kv_heads = kv_heads;
    call.queries = static_cast<int32_t>(q.d[1]);
    call.capacity = static_cast<int32_t>(cache.d[2]);
    call.width = static_cast<int32_t>(q.d[2]) / heads;
    call.q_top = q_top;
    call.p_top = p_top;
    call.k_bits = k_bits;
    call.v_bits = v_bits;
    call.rotary = kind.rotary ? 2 * static_cast<int32_t>(inputs[COS].dims.d[2]) : 0;
    call.type = float_of(inputs[Q].type);
    return call;
  }
};

constexpr CachedKind KINDS[] = {{"DqxCachedAttention", false, false},
                                {"DqxCachedAttentionRotary", true, false},
                                {"DqxCachedAttentionFloatValues", false, true},
                                {"DqxCachedAttentionRotaryFloatValues", true, true}};

}  // namespace

void add_cached_attention(Creators& all) { add_creators<CachedNode>(all, KINDS); }

}  // namespace dqx
