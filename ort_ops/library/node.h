// What the operators share: tensors of a node, failures as statuses, and the form of an operator.
#pragma once

#include <climits>
#include <exception>
#include <vector>

#include "abi.h"

namespace dqx {

struct Failure {
  ort::Status* status;
};

inline void check(ort::Status* status) {
  if (status != nullptr) throw Failure{status};
}

struct Tensor {
  int type = 0;
  std::vector<int64_t> shape;
  void* data = nullptr;
  int64_t count = 1;
};

inline Tensor tensor(const ort::Api& api, const ort::Value* value) {
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

[[noreturn]] inline void fail(const ort::Api& api, const char* message) {
  throw Failure{api.create_status(message)};
}

// Runs `body` and turns what it throws into a status.
template <class Body>
ort::Status* guarded(const ort::Api& api, Body body) {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {
    return api.create_status(error.what());
  }
}

// An operator on the CPU whose kernels are of the type K: K(const Op&, Api, KernelInfo*) makes one,
// K::compute(Context*) runs it, K::api is kept. Types of inputs behind the first are the kernel's to
// check; all inputs are required.
template <class Op, class K>
Op operator_of(const char* name, size_t inputs) {
  Op op{};
  op.version = ort::API_VERSION;
  op.name_ = name;
  op.inputs_ = inputs;
  using Base = const ort::CustomOp*;
  op.name = [](Base o) { return static_cast<const Op*>(o)->name_; };
  op.provider = [](Base) -> const char* { return nullptr; };  // CPU
  op.input_type = [](Base, size_t i) -> int { return i == 0 ? ort::FLOAT : ort::UNDEFINED; };
  op.input_count = [](Base o) { return static_cast<const Op*>(o)->inputs_; };
  op.output_type = [](Base, size_t) -> int { return ort::FLOAT; };
  op.output_count = [](Base) -> size_t { return 1; };
  op.destroy = [](void* kernel) { delete static_cast<K*>(kernel); };
  op.input_characteristic = [](Base, size_t) -> int { return ort::REQUIRED; };
  op.output_characteristic = op.input_characteristic;
  op.input_memory = [](Base, size_t) { return 0; };
  op.variadic_input_arity = [](Base) { return 1; };
  op.variadic_input_homogeneity = op.variadic_input_arity;
  op.variadic_output_arity = op.variadic_input_arity;
  op.variadic_output_homogeneity = op.variadic_input_arity;
  op.create_kernel_v2 = [](Base o, ort::Slot* table, const ort::KernelInfo* info, void** made) {
    const ort::Api api(table);
    return guarded(api, [&] { *made = new K(*static_cast<const Op*>(o), api, info); });
  };
  op.compute_v2 = [](void* kernel, ort::Context* context) {
    const K& k = *static_cast<const K*>(kernel);
    return guarded(k.api, [&] { k.compute(context); });
  };
  op.start_version = op.variadic_input_arity;
  op.end_version = [](Base) { return INT_MAX; };
  return op;
}

}  // namespace dqx
