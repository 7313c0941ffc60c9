// The linears as operators of ONNX Runtime, domain `dqexport`. What they compute, and their inputs and
// attributes, stands in ort_ops/linear_w4a8/op.py.
#include <climits>
#include <cstdio>
#include <exception>
#include <memory>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "abi.h"
#include "linear_w4a8/kernel.h"
#include "packed.h"
#include "workspace.h"

namespace {

using dqx::Activations;
using dqx::Form;
using dqx::Source;
using dqx::Weights;

// An operator: its name says the number formats.
struct LinearOp : ort::CustomOp {
  const char* name_;
  int weight_bits, activation_bits;
  bool channel, gated;
  bool two_levels() const { return channel && weight_bits == 4; }
};

struct Failure {
  ort::Status* status;
};

void check(ort::Status* status) {
  if (status != nullptr) throw Failure{status};
}

struct Tensor {
  int type = 0;
  std::vector<int64_t> shape;
  void* data = nullptr;
  int64_t count = 1;
};

Tensor tensor(const ort::Api& api, const ort::Value* value) {
  Tensor t;
  ort::Info* info = nullptr;
  check(api.info(value, &info));
  size_t rank = 0;
  ort::Status* failed = api.rank(info, &rank);
  t.shape.resize(rank);
  if (failed == nullptr) failed = api.dimensions(info, t.shape.data(), rank);
  if (failed == nullptr) failed = api.element_type(info, &t.type);
  api.release(info);
  check(failed);
  for (const int64_t size : t.shape) t.count *= size;
  check(api.data(value, &t.data));
  return t;
}

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
std::vector<float> floats(const Tensor& t) {
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
  p.scales = floats(constant(api, info, input++));
  if (op.two_levels()) p.steps = constant(api, info, input++);
  if (!op.gated) p.bias = floats(constant(api, info, input++));
  p.source.codes = p.codes.data;
  p.source.scales = p.scales.data();
  p.source.steps = static_cast<const int8_t*>(p.steps.data);
  p.source.bias = p.bias.empty() ? nullptr : p.bias.data();
  return p;
}

struct LinearKernel {
  ort::Api api;
  const dqx::Kernel* kernel;
  std::shared_ptr<const Weights> weights;
};

void fail(const ort::Api& api, const char* message) { throw Failure{api.create_status(message)}; }

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
  if (form.two_levels && p.steps.count != groups * form.outputs) fail(api, "dqexport: steps do not fit the weight");
  if (!p.bias.empty() && static_cast<int64_t>(p.bias.size()) != form.outputs) fail(api, "dqexport: the bias does not fit the weight");
  const int wanted = form.weight_bits == 4 ? ort::INT4 : ort::INT8;
  if (p.codes.type != wanted) fail(api, "dqexport: the codes are of another type than the operator's");
}

std::unique_ptr<LinearKernel> make(const LinearOp& op, const ort::Api& api,
                                   const ort::KernelInfo* info) {
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
  const dqx::Kernel* kernel = dqx::choose_kernel();
  if (kernel == nullptr) {
    fail(api, "dqexport: DQX_KERNEL names no kernel that runs on this machine");
  }
  auto made = std::make_unique<LinearKernel>(LinearKernel{
      api, kernel,
      dqx::packed(form, first.source, op.gated ? &second.source : nullptr, bytes)});
  release_pages(first.codes, static_cast<int64_t>(code_bytes));
  if (op.gated) release_pages(second.codes, static_cast<int64_t>(code_bytes));
  return made;
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

void compute(const LinearKernel& kernel, ort::Context* context) {
  const ort::Api& api = kernel.api;
  const Weights& w = *kernel.weights;
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
  uint8_t* space = dqx::workspace(codes + sums + static_cast<size_t>(a.rows * a.groups) * 4);
  a.codes = reinterpret_cast<int8_t*>(space);
  a.sums = reinterpret_cast<int32_t*>(space + codes);
  a.scales = reinterpret_cast<float*>(space + codes + sums);
  Call call{kernel, static_cast<const float*>(x.data), static_cast<float*>(y), a, 8, 1};
  call.blocks = (a.rows + dqx::ROW_BLOCK - 1) / dqx::ROW_BLOCK;
  const int64_t shares = (a.rows + call.share - 1) / call.share;
  if (shares == 1) quantize_share(&call, 0);
  else check(api.parallel_for(context, quantize_share, static_cast<size_t>(shares), &call));
  check(api.parallel_for(context, panel_block, static_cast<size_t>(w.panels * call.blocks), &call));
}

ort::Status* create(const ort::CustomOp* op, ort::Slot* table, const ort::KernelInfo* info,
                    void** kernel) {
  const ort::Api api(table);
  try {
    *kernel = make(*static_cast<const LinearOp*>(op), api, info).release();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {
    return api.create_status(error.what());
  }
}

ort::Status* run(void* kernel, ort::Context* context) {
  const LinearKernel& linear = *static_cast<const LinearKernel*>(kernel);
  try {
    compute(linear, context);
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {
    return linear.api.create_status(error.what());
  }
}

const LinearOp& as_linear(const ort::CustomOp* op) { return *static_cast<const LinearOp*>(op); }

size_t inputs_of(const LinearOp& op) {
  const size_t weight = op.two_levels() ? 3 : 2;
  return op.gated ? 1 + 2 * weight : 1 + weight + 1;
}

LinearOp linear(const char* name, int weight_bits, int activation_bits, bool channel,
                bool gated) {
  LinearOp op{};
  op.version = ort::API_VERSION;
  op.name_ = name;
  op.weight_bits = weight_bits;
  op.activation_bits = activation_bits;
  op.channel = channel;
  op.gated = gated;
  op.name = [](const ort::CustomOp* o) { return as_linear(o).name_; };
  op.provider = [](const ort::CustomOp*) -> const char* { return nullptr; };  // CPU
  op.input_type = [](const ort::CustomOp*, size_t i) -> int {
    return i == 0 ? ort::FLOAT : ort::UNDEFINED;  // the kernel checks the weights' types
  };
  op.input_count = [](const ort::CustomOp* o) { return inputs_of(as_linear(o)); };
  op.output_type = [](const ort::CustomOp*, size_t) -> int { return ort::FLOAT; };
  op.output_count = [](const ort::CustomOp*) -> size_t { return 1; };
  op.destroy = [](void* kernel) { delete static_cast<LinearKernel*>(kernel); };
  op.input_characteristic = [](const ort::CustomOp*, size_t) -> int { return ort::REQUIRED; };
  op.output_characteristic = op.input_characteristic;
  op.input_memory = [](const ort::CustomOp*, size_t) { return 0; };
  op.variadic_input_arity = [](const ort::CustomOp*) { return 1; };
  op.variadic_input_homogeneity = op.variadic_input_arity;
  op.variadic_output_arity = op.variadic_input_arity;
  op.variadic_output_homogeneity = op.variadic_input_arity;
  op.create_kernel_v2 = create;
  op.compute_v2 = run;
  op.start_version = op.variadic_input_arity;
  op.end_version = [](const ort::CustomOp*) { return INT_MAX; };
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

// Called by ONNX Runtime. A version that does not know API 18 gets no operators, and no error: nodes
// then run as the functions that the graph brings.
extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(
    ort::SessionOptions* options, const ort::ApiBase* base) {
  ort::Slot* table = base->get_api(ort::API_VERSION);
  if (table == nullptr) return nullptr;
  const ort::Api api(table);
  ort::Domain* domain = nullptr;
  if (ort::Status* failed = api.create_domain("dqexport", &domain)) return failed;
  for (const LinearOp& op : OPS) {
    if (ort::Status* failed = api.add_op(domain, &op)) return failed;
  }
  return api.add_domain(options, domain);
}

// For programs that ask which kernel runs here; null where DQX_KERNEL names none.
extern "C" __attribute__((visibility("default"))) const char* dqx_kernel_name() {
  const dqx::Kernel* kernel = dqx::choose_kernel();
  return kernel == nullptr ? nullptr : kernel->name;
}
