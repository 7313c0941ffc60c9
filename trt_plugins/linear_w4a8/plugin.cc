// The linears as plugins of TensorRT. What they compute stands in ort_ops/linear_w4a8/op.py.
#include "ort_ops/linear_w4a8/launch.h"

#include <algorithm>
#include <climits>
#include <cmath>

#include "trt_plugins/library/creators.h"

namespace dqx {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

struct LinearKind {
  const char* name;
  int weight_bits, activation_bits;  // 16: x is taken as it is
  bool channel, gated;
};

constexpr int64_t MOST_INPUTS = (int64_t{1} << 31) / (128 * 128) - 1;  // of an integer sum

struct LinearNode {
  using Kind = LinearKind;
  using Build = dqx::Build;
  static constexpr int32_t LIKE[] = {0};

  Kind kind;
  int32_t group = 0, activation_group = 0;
  float step = 0;

  template <class Visit>
  void attributes(const Visit& visit) {
    visit("group", group);
    visit("activation_group", activation_group);
    visit("step", step);
  }

  void check_attributes() const {
    if (group <= 0) refuse("group = %d has to be positive", group);
    if (activation_group <= 0) refuse("activation_group = %d has to be positive", activation_group);
    if (!(step > 0) || !std::isfinite(step)) refuse("step = %g has to be positive", step);
  }

  int inputs() const { return 1 + weights() * parts() + !kind.gated; }

  bool takes(int place, const DataType* types) const {
    switch (role(place)) {
      case Role::X: return is_float(types[place]) || types[place] == DataType::kBF16;
      case Role::CODES: return types[place] == code_type();
      case Role::SCALES: return is_float(types[place]) && types[place] == types[FIRST_SCALES];
      case Role::STEPS: return types[place] == DataType::kINT8;
      case Role::BIAS_OR_Y: return types[place] == types[0];
    }
    return false;
  }

  void check(const Dims* inputs) const {
    const Dims &x = inputs[0], &codes = inputs[FIRST_CODES];
    if (codes.nbDims != 2) refuse("codes %s have to have two axes", text_of(codes).c_str());
    if (x.nbDims < 1 || !same(x.d[x.nbDims - 1], codes.d[0])) {
      refuse("x %s does not fit codes %s", text_of(x).c_str(), text_of(codes).c_str());
    }
    if (kind.activation_bits < 16) check_depth(codes.d[0]);
    for (int place = 1; place < this->inputs(); ++place) check_part(place, inputs[place], codes);
  }

  void set_shapes(const nvinfer1::DimsExprs* inputs, nvinfer1::DimsExprs* outputs) const {
    nvinfer1::DimsExprs& y = outputs[0];
    y = inputs[0];
    y.d[y.nbDims - 1] = inputs[FIRST_CODES].d[1];
  }

  size_t workspace(const nvinfer1::PluginTensorDesc* inputs) const {
    return linear_workspace(call(inputs));
  }

  int run(const nvinfer1::PluginTensorDesc* inputs, const void* const* tensors,
          void* const* outputs, void* workspace, Stream stream) const {
    LinearWeight weight[2] = {};
    for (int i = 0; i < weights(); ++i) {
      const void* const* part = tensors + FIRST_CODES + i * parts();
      weight[i] = {part[0], part[1], stepped() ? static_cast<const int8_t*>(part[2]) : nullptr};
    }
    const void* bias = kind.gated ? nullptr : tensors[this->inputs() - 1];
    return launch_linear(call(inputs), tensors[0], weight, bias, outputs[0], workspace, stream);
  }

 private:
  enum class Role { X, CODES, SCALES, STEPS, BIAS_OR_Y };
  static constexpr int FIRST_CODES = 1, FIRST_SCALES = 2;

  static bool same(int64_t a, int64_t b) { return a < 0 || b < 0 || a == b; }

  bool stepped() const { return kind.channel && kind.weight_bits == 4; }
  int parts() const { return stepped() ? 3 : 2; }  // codes, scales, steps
  int weights() const { return kind.gated ? 2 : 1; }
  DataType code_type() const { return kind.weight_bits == 4 ? DataType::kINT4 : DataType::kINT8; }

  Role role(int place) const {
    if (place == 0) return Role::X;
    if (place > weights() * parts()) return Role::BIAS_OR_Y;
    return static_cast<Role>(1 + (place - 1) % parts());
  }

  void check_depth(int64_t depth) const {
    if (depth < 0) return;
    if (depth % activation_group || (kind.channel && depth != activation_group)) {
      refuse("activation_group = %d does not fit %lld inputs", activation_group,
             static_cast<long long>(depth));
    }
    const int64_t summed = kind.channel ? depth : std::min(group, activation_group);
    if (summed > MOST_INPUTS) {
      refuse("a sum of %lld products does not fit 32 bits", static_cast<long long>(summed));
    }
  }

  // Whether a weight's tensor or the bias fits codes (K, N).
  void check_part(int place, const Dims& shape, const Dims& codes) const {
    const int64_t depth = codes.d[0], width = codes.d[1];
    const int64_t groups = depth < 0 ? -1 : (depth + group - 1) / group;
    Dims wanted{2, {depth, width}};
    const char* what = "codes";
    switch (role(place)) {
      case Role::X:
      case Role::CODES: break;
      case Role::SCALES: what = "scales"; wanted.d[0] = groups; break;
      case Role::STEPS: what = "steps"; wanted.d[0] = groups; break;
      case Role::BIAS_OR_Y: what = "bias"; break;
    }
    const bool one_axis = role(place) == Role::BIAS_OR_Y ||
                          (role(place) == Role::SCALES && kind.channel);
    if (one_axis) wanted = Dims{1, {width}};
    bool fits = shape.nbDims == wanted.nbDims;
    for (int axis = 0; fits && axis < shape.nbDims; ++axis) {
      fits = same(shape.d[axis], wanted.d[axis]);
    }
    if (!fits) {
      refuse("%s %s, input %d, have to be %s with groups of %d", what, text_of(shape).c_str(), place,
             text_of(wanted).c_str(), group);
    }
  }

  Linear call(const nvinfer1::PluginTensorDesc* inputs) const {
    const Dims &x = inputs[0].dims, &codes = inputs[FIRST_CODES].dims;
    Linear call{};
    call.rows = 1;
    for (int axis = 0; axis + 1 < x.nbDims; ++axis) call.rows *= x.d[axis];
    call.depth = static_cast<int32_t>(codes.d[0]);
    call.width = static_cast<int32_t>(codes.d[1]);
    call.group = group;
    call.activation_group = activation_group;
    call.step = step;
    call.weight_bits = kind.weight_bits;
    call.activation_bits = kind.activation_bits;
    call.channel = kind.channel;
    call.gated = kind.gated;
    call.type = float_of(inputs[0].type);
    call.scales = float_of(inputs[FIRST_SCALES].type);
    return call;
  }
};

constexpr LinearKind KINDS[] = {
    {"DqxLinearW4A4", 4, 4, false, false},
    {"DqxLinearW4A8", 4, 8, false, false},
    {"DqxLinearW4A16", 4, 16, false, false},
    {"DqxLinearW8A4", 8, 4, false, false},
    {"DqxLinearW8A8", 8, 8, false, false},
    {"DqxLinearW8A16", 8, 16, false, false},
    {"DqxLinearW4A4Channel", 4, 4, true, false},
    {"DqxLinearW4A8Channel", 4, 8, true, false},
    {"DqxLinearW8A4Channel", 8, 4, true, false},
    {"DqxLinearW8A8Channel", 8, 8, true, false},
    {"DqxGatedW4A4", 4, 4, false, true},
    {"DqxGatedW4A8", 4, 8, false, true},
    {"DqxGatedW4A16", 4, 16, false, true},
    {"DqxGatedW8A4", 8, 4, false, true},
    {"DqxGatedW8A8", 8, 8, false, true},
    {"DqxGatedW8A16", 8, 16, false, true},
    {"DqxGatedW4A4Channel", 4, 4, true, true},
    {"DqxGatedW4A8Channel", 4, 8, true, true},
    {"DqxGatedW8A4Channel", 8, 4, true, true},
    {"DqxGatedW8A8Channel", 8, 8, true, true},
};

}  // namespace

void add_linear(Creators& all) { add_creators<LinearNode>(all, KINDS); }

}  // namespace dqx
