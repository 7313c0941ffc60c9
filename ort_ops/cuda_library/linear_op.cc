// The linears on GPUs. What they compute, and their inputs and attributes, stands in
// ort_ops/linear_w4a8/op.py.
#include "linear_w4a8/launch.h"

#include <algorithm>
#include <cmath>

#include "node.h"
#include "operators.h"

namespace dqx {
namespace {

constexpr int64_t MOST_SUMMED = (int64_t{1} << 31) / (128 * 128) - 1;  // of an integer sum

struct LinearOp : DeviceOp {
  int weight_bits, activation_bits;
  bool channel, gated;
  bool stepped() const { return channel && weight_bits == 4; }
  size_t parts() const { return stepped() ? 3 : 2; }  // codes, scales, steps
};

struct LinearNode {
  LinearNode(const LinearOp& op, const ort::Api& api, const ort::KernelInfo* info);
  void compute(ort::Context* context) const;

  ort::Api api;
  const LinearOp& op;
  Linear form{};  // all but what inputs say

 private:
  void check_depth(int64_t depth) const;
  LinearWeight weight(const ort::Context* context, size_t first, Linear& call) const;
};

LinearNode::LinearNode(const LinearOp& op, const ort::Api& api, const ort::KernelInfo* info)
    : api(api), op(op) {
  form.group = whole(api, info, "group");
  form.activation_group = whole(api, info, "activation_group");
  check(api.attribute(info, "step", &form.step));
  if (form.group <= 0 || form.activation_group <= 0 || !(form.step > 0) ||
      !std::isfinite(form.step)) {
    fail(api, "dqexport: groups and step have to be positive");
  }
  form.weight_bits = op.weight_bits;
  form.activation_bits = op.activation_bits;
  form.channel = op.channel;
  form.gated = op.gated;
}

void LinearNode::check_depth(int64_t depth) const {
  const int64_t run = form.activation_group;
  if (depth % run != 0 || (form.channel && depth != run)) {
    fail(api, "dqexport: activation_group does not fit the weight");
  }
  const int64_t summed = form.channel ? depth : std::min<int64_t>(form.group, run);
  if (form.activation_bits < 16 && summed > MOST_SUMMED) {
    fail(api, "dqexport: sums of so many inputs do not fit 32 bits");
  }
}

// The weight whose codes are input `first`; notes the type of its scales.
LinearWeight LinearNode::weight(const ort::Context* context, size_t first, Linear& call) const {
  const int64_t groups = (call.depth + call.group - 1) / call.group;
  const std::vector<int64_t> by_group = {groups, call.width};
  const Tensor codes = input(api, context, first), scales = input(api, context, first + 1);
  expect(api, "codes", codes, {call.depth, call.width});
  expect(api, "scales", scales, call.channel ? std::vector<int64_t>{call.width} : by_group);
  if (!is_float(scales.type)) fail(api, "dqexport: scales have to be floats");
  const Float type = float_of(scales.type);
  if (first > 1 && type != call.scales) fail(api, "dqexport: scales differ in type");
  call.scales = type;
  if (!op.stepped()) return {codes.data, scales.data, nullptr};
  const Tensor steps = input(api, context, first + 2);
  expect(api, "steps", steps, by_group);
  return {codes.data, scales.data, static_cast<const int8_t*>(steps.data)};
}

void LinearNode::compute(ort::Context* context) const {
  const Tensor x = input(api, context, 0), codes = input(api, context, 1);
  if (codes.shape.size() != 2 || x.shape.empty() || x.shape.back() != codes.shape[0]) {
    fail(api, "dqexport: the activations do not fit the weight");
  }
  check_depth(codes.shape[0]);
  Linear call = form;
  call.depth = static_cast<int32_t>(codes.shape[0]);
  call.width = static_cast<int32_t>(codes.shape[1]);
  call.rows = call.depth ? x.count / call.depth : 0;
  call.type = float_of(x.type);
  LinearWeight weights[2] = {weight(context, 1, call), {}};
  if (op.gated) weights[1] = weight(context, 1 + op.parts(), call);
  const void* bias = nullptr;
  if (!op.gated) {
    const Tensor added = input(api, context, op.inputs_ - 1);
    expect(api, "bias", added, {call.width});
    bias = added.data;
  }
  std::vector<int64_t> shape = x.shape;
  shape.back() = call.width;
  const Output y = output(api, context, 0, shape);
  if (call.rows == 0 || call.width == 0) return;
  const Workspace room(api, context, y, linear_workspace(call));
  launched(api, launch_linear(call, x.data, weights, bias, y.data, room.data(),
                              stream(api, context)));
}

struct Kind {
  const char* name;
  int weight_bits, activation_bits;
  bool channel, gated;
};

constexpr Kind KINDS[] = {
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

LinearOp linear(const Kind& kind, int type) {
  const size_t parts = kind.channel && kind.weight_bits == 4 ? 3 : 2;
  const size_t weights = kind.gated ? 2 : 1, inputs = 1 + weights * parts + !kind.gated;
  LinearOp op = device_operator<LinearOp, LinearNode>(kind.name, inputs, 1);
  op.weight_bits = kind.weight_bits;
  op.activation_bits = kind.activation_bits;
  op.channel = kind.channel;
  op.gated = kind.gated;
  for (size_t first = 1; first < 1 + weights * parts; first += parts) {
    op.types_[first] = kind.weight_bits == 4 ? ort::INT4 : ort::INT8;
    op.types_[first + 1] = ort::UNDEFINED;  // of scales: fp32 or fp16
    if (parts == 3) op.types_[first + 2] = ort::INT8;
  }
  if (!kind.gated) op.types_[inputs - 1] = type;
  op.types_[0] = op.output_types_[0] = type;
  return op;
}

std::vector<LinearOp> linears() {
  std::vector<LinearOp> all;
  for (const Kind& kind : KINDS) {
    for (const int type : ACTIVATIONS) all.push_back(linear(kind, type));
  }
  return all;
}

}  // namespace

ort::Status* add_device_linears(const ort::Api& api, ort::Domain* domain) {
  static const std::vector<LinearOp> ops = linears();
  return add_all(api, domain, ops);
}

}  // namespace dqx
