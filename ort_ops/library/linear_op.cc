// The linears as operators of ONNX Runtime, domain `dqexport`. What they compute, and their inputs and
// attributes, stands in ort_ops/linear_w4a8/op.py.
#include <cstdio>
#include <memory>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "linear_w4a8/kernel.h"
#include "node.h"
#include "operators.h"
#include "packed.h"
#include "workspace.h"

namespace {

using dqx::Activations;
using dqx::check;
using dqx::fail;
using dqx::Failure;
using dqx::Form;
using dqx::Source;
using dqx::tensor;
using dqx::Tensor;
using dqx::Weights;

// An operator: its name says the number formats.
struct LinearOp : ort::CustomOp {
  const char* name_;
  size_t inputs_;
  int weight_bits, activation_bits;
  bool channel, gated;
  bool two_levels() const { return channel && weight_bits == 4; }
};

Tensor constant(const ort::Api& api, const ort::KernelInfo* info, size_t index) {
  int is_constant = 0;
  const ort::Value* value = nullptr;
  check(api.constant_input(info, index, &is_constant, &value));
  if (!is_constant) throw Failure{api.create_status("dqexport: weights have to be constants")};
  return tensor(api, value);
}

float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 0) {
    const float tiny = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -tiny : tiny;
  }
  const uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// Floats of a tensor of either float type.
std::vector<float> floats(const ort::Api& api, const Tensor& t) {
  if (t.type != ort::FLOAT && t.type != ort::FLOAT16) {
    fail(api, "dqexport: scales and biases have to be fp32 or fp16");
  }
  std::vector<float> values(static_cast<size_t>(t.count));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = t.type == ort::FLOAT16 ? from_half(static_cast<const uint16_t*>(t.data)[i])
                                       : static_cast<const float*>(t.data)[i];
  }
  return values;
}

// Lets go of the pages of a tensor that was packed. Pages of a mapped file are dropped and read again
// if need be; memory of other kinds keeps its content.
void release_pages(const Tensor& t, int64_t bytes) {
#if defined(__linux__) && defined(MADV_PAGEOUT)
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(t.data) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(t.data) + static_cast<uintptr_t>(bytes)) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_PAGEOUT);
#else
  (void)t, (void)bytes;
#endif
}

// The tensors of one weight: codes, scales, steps on two levels, and the bias of a plain linear.
struct Parts {
  Tensor codes;
  std::vector<float> scales, bias;
  Tensor steps;
  Source source;
};

Parts parts(const ort::Api& api, const ort::KernelInfo* info, const LinearOp& op, size_t& input) {
  Parts p;
  p.codes = constant(api, info, input++);
  p.scales = floats(api, constant(api, info, input++));
  if (op.two_levels()) p.steps = constant(api, info, input++);
  if (!op.gated) p.bias = floats(api, constant(api, info, input++));
  p.source.codes = p.codes.data;
  p.source.scales = p.scales.data();
  p.source.steps = static_cast<const int8_t*>(p.steps.data);
  p.source.bias = p.bias.empty() ? nullptr : p.bias.data();
  return p;
}

constexpr int64_t MOST_INPUTS = (int64_t{1} << 31) / (128 * 128) - 1;  // of integer sums

struct LinearKernel {
  LinearKernel(const LinearOp& op, const ort::Api& api, const ort::KernelInfo* info);
  void compute(ort::Context* context) const;

  ort::Api api;
  const dqx::Kernel* kernel;
  std::shared_ptr<const Weights> weights;
};

void check_form(const ort::Api& api, const Form& form, const Parts& p) {
  char text[200];
  const int64_t groups = form.group > 0 ? (form.inputs + form.group - 1) / form.group : 0;
  const auto scales = static_cast<int64_t>(p.scales.size());
  const int64_t rows = form.channel ? 1 : groups;
  if (form.group <= 0 || scales != rows * form.outputs) {
    std::snprintf(text, sizeof text, "dqexport: %lld scales do not fit a weight (%lld, %lld) in groups of %lld",
                  static_cast<long long>(scales), static_cast<long long>(form.inputs),
                  static_cast<long long>(form.outputs), static_cast<long long>(form.group));
    fail(api, text);
  }
  if (form.activation_group <= 0 || form.inputs % form.activation_group != 0 ||
      (form.channel && form.activation_group != form.inputs)) {
    fail(api, "dqexport: activation_group does not fit the weight");
  }
  if (form.channel && form.inputs > MOST_INPUTS) {
    fail(api, "dqexport: sums of so many inputs do not fit 32 bits");
  }
  if (form.two_levels && p.steps.type != ort::INT8) fail(api, "dqexport: steps have to be int8");
  if (form.two_levels && p.steps.count != groups * form.outputs) {
    fail(api, "dqexport: steps do not fit the weight");
  }
  if (!p.bias.empty() && static_cast<int64_t>(p.bias.size()) != form.outputs) {
    fail(api, "dqexport: the bias does not fit the weight");
  }
  const int wanted = form.weight_bits == 4 ? ort::INT4 : ort::INT8;
  if (p.codes.type != wanted) fail(api, "dqexport: the codes are of another type than the operator's");
}

LinearKernel::LinearKernel(const LinearOp& op, const ort::Api& api, const ort::KernelInfo* info)
    : api(api), kernel(dqx::choose_kernel()) {
  Form form;
  form.weight_bits = op.weight_bits;
  form.activation_bits = op.activation_bits;
  form.channel = op.channel;
  form.two_levels = op.two_levels();
  form.gated = op.gated;
  check(api.attribute(info, "group", &form.group));
  check(api.attribute(info, "activation_group", &form.activation_group));
  check(api.attribute(info, "step", &form.step));
  size_t input = 1;  // 0: the activations
  const Parts first = parts(api, info, op, input);
  Parts second;
  if (op.gated) second = parts(api, info, op, input);
  if (first.codes.shape.size() != 2) fail(api, "dqexport: a weight has two axes");
  if (op.gated && second.codes.shape != first.codes.shape) {
    fail(api, "dqexport: gate and up weights differ in shape");
  }
  form.inputs = first.codes.shape[0];
  form.outputs = first.codes.shape[1];
  if (form.channel && form.weight_bits == 8) form.group = form.inputs;
  check_form(api, form, first);
  if (op.gated) check_form(api, form, second);
  const auto code_bytes = static_cast<size_t>((first.codes.count * form.weight_bits + 7) / 8);
  const dqx::SourceBytes bytes = {code_bytes, first.scales.size() * 4,
                                  op.two_levels() ? static_cast<size_t>(first.steps.count) : 0,
                                  first.bias.size() * 4};
  if (kernel == nullptr) {
    fail(api, "dqexport: DQX_KERNEL names no kernel that runs on this machine");
  }
  weights = dqx::packed(form, first.source, op.gated ? &second.source : nullptr, bytes);
  release_pages(first.codes, static_cast<int64_t>(code_bytes));
  if (op.gated) release_pages(second.codes, static_cast<int64_t>(code_bytes));
}

// One call: rows to integers, then panels of outputs, each spread over the threads of the session.
struct Call {
  const LinearKernel& kernel;
  const float* x;
  float* y;
  Activations a;
  int64_t share;   // rows to integers at a time
  int64_t blocks;  // of rows; a task is a panel for one block
};

void quantize_share(void* user, size_t number) {
  const Call& call = *static_cast<const Call*>(user);
  const int64_t first = static_cast<int64_t>(number) * call.share;
  const int64_t last = first + call.share < call.a.rows ? first + call.share : call.a.rows;
  call.kernel.kernel->quantize(*call.kernel.weights, call.x, first, last, call.a);
}

void panel_block(void* user, size_t number) {
  const Call& call = *static_cast<const Call*>(user);
  const int64_t panel = static_cast<int64_t>(number) / call.blocks;
  const int64_t block = static_cast<int64_t>(number) % call.blocks;
  const int64_t first = call.a.rows * block / call.blocks;
  const int64_t last = call.a.rows * (block + 1) / call.blocks;
  call.kernel.kernel->panel(*call.kernel.weights, call.a, panel, first, last, call.y);
}

size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }

void LinearKernel::compute(ort::Context* context) const {
  const Weights& w = *weights;
  const ort::Value* input = nullptr;
  check(api.input(context, 0, &input));
  const Tensor x = tensor(api, input);
  if (x.shape.empty() || x.shape.back() != w.form.inputs) {
    fail(api, "dqexport: the activations do not fit the weight");
  }
  std::vector<int64_t> shape = x.shape;
  shape.back() = w.form.outputs;
  ort::Value* output = nullptr;
  check(api.output(context, 0, shape.data(), shape.size(), &output));
  void* y = nullptr;
  check(api.data(output, &y));
  Activations a;
  a.rows = w.form.inputs ? x.count / w.form.inputs : 0;
  if (a.rows == 0 || w.form.outputs == 0) return;
  a.padded = w.padded;
  a.chunks = static_cast<int64_t>(w.chunks.size());
  a.groups = w.form.inputs / w.form.activation_group;
  a.planes = w.form.activation_bits == 16 ? 2 : 1;
  const auto rows = static_cast<size_t>(a.rows * a.planes);
  const size_t codes = padded(rows * static_cast<size_t>(a.padded));
  const size_t sums = padded(rows * static_cast<size_t>(a.chunks) * 4);
  uint8_t* space = dqx::workspace<dqx::Use::CALL>(codes + sums + static_cast<size_t>(a.rows * a.groups) * 4);
  a.codes = reinterpret_cast<int8_t*>(space);
  a.sums = reinterpret_cast<int32_t*>(space + codes);
  a.scales = reinterpret_cast<float*>(space + codes + sums);
  Call call{*this, static_cast<const float*>(x.data), static_cast<float*>(y), a, 8, 1};
  call.blocks = (a.rows + dqx::ROW_BLOCK - 1) / dqx::ROW_BLOCK;
  const int64_t shares = (a.rows + call.share - 1) / call.share;
  if (shares == 1) quantize_share(&call, 0);
  else check(api.parallel_for(context, quantize_share, static_cast<size_t>(shares), &call));
  check(api.parallel_for(context, panel_block, static_cast<size_t>(w.panels * call.blocks), &call));
}

LinearOp linear(const char* name, int weight_bits, int activation_bits, bool channel,
                bool gated) {
  const size_t weight = channel && weight_bits == 4 ? 3 : 2;
  const size_t inputs = gated ? 1 + 2 * weight : 1 + weight + 1;
  LinearOp op = dqx::operator_of<LinearOp, LinearKernel>(name, inputs);
  op.weight_bits = weight_bits;
  op.activation_bits = activation_bits;
  op.channel = channel;
  op.gated = gated;
  return op;
}

const LinearOp OPS[] = {
    linear("DqxLinearW4A4", 4, 4, false, false),
    linear("DqxLinearW4A8", 4, 8, false, false),
    linear("DqxLinearW4A16", 4, 16, false, false),
    linear("DqxLinearW8A4", 8, 4, false, false),
    linear("DqxLinearW8A8", 8, 8, false, false),
    linear("DqxLinearW8A16", 8, 16, false, false),
    linear("DqxLinearW4A4Channel", 4, 4, true, false),
    linear("DqxLinearW4A8Channel", 4, 8, true, false),
    linear("DqxLinearW8A4Channel", 8, 4, true, false),
    linear("DqxLinearW8A8Channel", 8, 8, true, false),
    linear("DqxGatedW4A4", 4, 4, false, true),
    linear("DqxGatedW4A8", 4, 8, false, true),
    linear("DqxGatedW4A16", 4, 16, false, true),
    linear("DqxGatedW8A4", 8, 4, false, true),
    linear("DqxGatedW8A8", 8, 8, false, true),
    linear("DqxGatedW8A16", 8, 16, false, true),
    linear("DqxGatedW4A4Channel", 4, 4, true, true),
    linear("DqxGatedW4A8Channel", 4, 8, true, true),
    linear("DqxGatedW8A4Channel", 8, 4, true, true),
    linear("DqxGatedW8A8Channel", 8, 8, true, true),
};

}  // namespace

namespace dqx {

ort::Status* add_linears(const ort::Api& api, ort::Domain* domain) {
  for (const LinearOp& op : OPS) {
    if (ort::Status* failed = api.add_op(domain, &op)) return failed;
  }
  return nullptr;
}

}  // namespace dqx
