// What operators share whose tensors lie on a GPU. With DQX_ON_CPU they are of the CPU.
#pragma once

#include <cstdio>
#include <string>

#include "launch.h"
#include "library/node.h"

namespace dqx {

#ifdef DQX_ON_CPU
constexpr const char* PROVIDER = nullptr;
#else
constexpr const char* PROVIDER = "CUDAExecutionProvider";
#endif

constexpr size_t MOST_INPUTS = 14, MOST_OUTPUTS = 4;

// One operator for one type of activations: nodes of two types are two operators of one name.
struct DeviceOp : ort::CustomOp {
  const char* name_;
  size_t inputs_, outputs_;
  int types_[MOST_INPUTS];  // UNDEFINED: several
  int output_types_[MOST_OUTPUTS];
};

// Like operator_of, for kernels on the device.
template <class Op, class K>
Op device_operator(const char* name, size_t inputs, size_t outputs) {
  Op op = operator_of<Op, K>(name, inputs);
  op.outputs_ = outputs;
  using Base = const ort::CustomOp*;
  op.provider = [](Base) { return PROVIDER; };
  op.input_type = [](Base o, size_t i) { return static_cast<const Op*>(o)->types_[i]; };
  op.output_type = [](Base o, size_t i) { return static_cast<const Op*>(o)->output_types_[i]; };
  op.output_count = [](Base o) { return static_cast<const Op*>(o)->outputs_; };
  return op;
}

// Output i may have the memory of input SOURCES[i], -1: of none, where nobody else reads that.
template <int... SOURCES>
void in_place(DeviceOp& op) {
  op.may_inplace = [](int** inputs, int** outputs) {
    size_t count = 0;
    *inputs = new int[sizeof...(SOURCES)];
    *outputs = new int[sizeof...(SOURCES)];
    int place = 0;
    for (const int source : {SOURCES...}) {
      if (source >= 0) (*inputs)[count] = source, (*outputs)[count++] = place;
      ++place;
    }
    return count;
  };
  op.release_may_inplace = [](int* inputs, int* outputs) {
    delete[] inputs;
    delete[] outputs;
  };
}

template <class Ops>
ort::Status* add_all(const ort::Api& api, ort::Domain* domain, const Ops& ops) {
  for (const auto& op : ops) {
    if (ort::Status* failed = api.add_op(domain, &op)) return failed;
  }
  return nullptr;
}

constexpr int ACTIVATIONS[] = {ort::FLOAT, ort::FLOAT16, ort::BFLOAT16};

inline bool is_float(int type) {
  return type == ort::FLOAT || type == ort::FLOAT16 || type == ort::BFLOAT16;
}

inline Float float_of(int type) {
  return type == ort::FLOAT16 ? Float::fp16 : type == ort::BFLOAT16 ? Float::bf16 : Float::fp32;
}

inline Tensor input(const ort::Api& api, const ort::Context* context, size_t index) {
  const ort::Value* value = nullptr;
  check(api.input(context, index, &value));
  return tensor(api, value);
}

// An output of a call.
struct Output {
  ort::Value* value = nullptr;
  void* data = nullptr;
};

inline Output output(const ort::Api& api, ort::Context* context, size_t index,
                     const std::vector<int64_t>& shape) {
  Output made;
  check(api.output(context, index, shape.data(), shape.size(), &made.value));
  check(api.data(made.value, &made.data));
  return made;
}

inline Stream stream(const ort::Api& api, const ort::Context* context) {
  Stream queue = nullptr;
  check(api.stream(context, &queue));
  return queue;
}

// Memory of the provider, where an output lies. What the stream still does with it when it is
// given back comes before all that the stream does with it next.
class Workspace {
 public:
  Workspace(const ort::Api& api, const ort::Context* context, const Output& beside, size_t bytes)
      : api_(api) {
    if (bytes == 0) return;
    const ort::Memory* memory = nullptr;
    check(api.memory(beside.value, &memory));
    check(api.allocator(context, memory, &allocator_));
    try {
      if (stream(api, context) != nullptr) {
        check(api.scratch(context, memory, bytes, &data_));
      } else {
        data_ = allocator_->allocate(allocator_, bytes);
      }
      if (data_ == nullptr) fail(api, "dqexport: not enough memory for an operator");
    } catch (const Failure&) {
      api.release(allocator_);
      throw;
    }
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    if (data_ != nullptr) allocator_->free(allocator_, data_);
    if (allocator_ != nullptr) api_.release(allocator_);
  }
  void* data() const { return data_; }

 private:
  const ort::Api& api_;
  ort::Allocator* allocator_ = nullptr;
  void* data_ = nullptr;
};

// Fails where a launcher has.
inline void launched(const ort::Api& api, int error) {
  if (error == 0) return;
  char text[100];
  std::snprintf(text, sizeof text, "dqexport: error %d of the CUDA runtime", error);
  fail(api, text);
}

// Fails unless the shape of `what` is `wanted`.
inline void expect(const ort::Api& api, const char* what, const Tensor& t,
                   const std::vector<int64_t>& wanted) {
  if (t.shape == wanted) return;
  std::string text = std::string("dqexport: ") + what + " has shape (";
  for (const int64_t size : t.shape) text += std::to_string(size) + ", ";
  text += "), not (";
  for (const int64_t size : wanted) text += std::to_string(size) + ", ";
  fail(api, (text + ")").c_str());
}

inline int32_t whole(const ort::Api& api, const ort::KernelInfo* info, const char* name) {
  int64_t value = 0;
  check(api.attribute(info, name, &value));
  if (value < INT32_MIN || value > INT32_MAX) fail(api, "dqexport: an attribute has more than 32 bits");
  return static_cast<int32_t>(value);
}

}  // namespace dqx
