// Attention as a plugin of TensorRT. What it computes stands in ort_ops/attention/op.py.
#include "ort_ops/attention/launch.h"

#include "trt_plugins/library/creators.h"
#include "trt_plugins/library/shapes.h"

namespace dqx {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

struct AttentionKind {
  const char* name;
};

struct AttentionNode {
  using Kind = AttentionKind;
  using Build = dqx::Build;
  static constexpr int32_t LIKE[] = {0};

  Kind kind;
  int32_t heads = 0, kv_heads = 0;
  int32_t q_top = 0, k_top = 0, v_top = 0, p_top = 0;

  template <class Visit>
  void attributes(const Visit& visit) {
    visit("heads", heads);
    visit("kv_heads", kv_heads);
    visit("q_top", q_top);
    visit("k_top", k_top);
    visit("v_top", v_top);
    visit("p_top", p_top);
  }

  void check_attributes() const {
    if (heads <= 0 || kv_heads <= 0 || heads % kv_heads) {
      refuse("heads = %d have to be a multiple of kv_heads = %d", heads, kv_heads);
    }
    check_top("q_top", q_top, 127);
    check_top("k_top", k_top, 127);
    check_top("v_top", v_top, 255);
    check_top("p_top", p_top, 255);
  }

  int inputs() const { return Y; }

  bool takes(int place, const DataType* types) const {
    if (place == VISIBLE || place == COMMON) return types[place] == DataType::kBOOL;
    return is_float(types[place]) && types[place] == types[Q];
  }

  void check(const Dims* inputs) const {
    const Dims &q = inputs[Q], &k = inputs[K], &v = inputs[V];
    if (q.nbDims != 3 || k.nbDims != 4) {
      refuse("q %s has to have three axes, and k %s four", text_of(q).c_str(), text_of(k).c_str());
    }
    const int64_t rows = q.d[0], queries = q.d[1], keys = k.d[2], width = k.d[3];
    if (width == 0 || width > MOST_HEAD_WIDTH) {
      refuse("heads have to have 1 to %d channels, not %lld", MOST_HEAD_WIDTH,
             static_cast<long long>(width));
    }
    if (keys == 0) refuse("k %s has no keys", text_of(k).c_str());
    expect("q", q, {3, {rows, queries, width < 0 ? -1 : heads * width}});
    expect("k", k, {4, {rows, kv_heads, keys, width}});
    expect("v", v, {4, {rows, kv_heads, keys, width}});
    expect("visible", inputs[VISIBLE], {4, {rows, 1, queries, keys}});
    expect("common", inputs[COMMON], {2, {rows, keys}});
    expect_channels("v_scale", inputs[V_SCALE], kv_heads, width);
    expect_channels("v_zero", inputs[V_ZERO], kv_heads, width);
  }

  void set_shapes(const nvinfer1::DimsExprs* inputs, nvinfer1::DimsExprs* outputs) const {
    outputs[0] = inputs[Q];
  }

  size_t workspace(const nvinfer1::PluginTensorDesc* inputs) const {
    return attention_workspace(call(inputs));
  }

  int run(const nvinfer1::PluginTensorDesc* inputs, const void* const* tensors,
          void* const* outputs, void* workspace, Stream stream) const {
    return launch_attention(call(inputs), tensors[Q], tensors[K], tensors[V],
                            static_cast<const bool*>(tensors[VISIBLE]),
                            static_cast<const bool*>(tensors[COMMON]), tensors[V_SCALE],
                            tensors[V_ZERO], outputs[0], workspace, stream);
  }

 private:
  enum Place { Q, K, V, VISIBLE, COMMON, V_SCALE, V_ZERO, Y };

  static void check_top(const char* name, int32_t top, int32_t most) {
    if (top < 1 || top > most) refuse("%s = %d has to be between 1 and %d", name, top, most);
  }

  Attention call(const nvinfer1::PluginTensorDesc* inputs) const {
    const Dims &q = inputs[Q].dims, &k = inputs[K].dims;
    Attention call{};
    call.batch = static_cast<int32_t>(q.d[0]);
    call.heads = heads;
    call.kv_heads = kv_heads;
    call.queries = static_cast<int32_t>(q.d[1]);
    call.keys = static_cast<int32_t>(k.d[2]);
    call.width = static_cast<int32_t>(k.d[3]);
    call.q_top = q_top;
    call.k_top = k_top;
    call.v_top = v_top;
    call.p_top = p_top;
    call.type = float_of(inputs[Q].type);
    return call;
  }
};

constexpr AttentionKind KINDS[] = {{"DqxAttention"}};

}  // namespace

void add_attention(Creators& all) { add_creators<AttentionNode>(all, KINDS); }

}  // namespace dqx
