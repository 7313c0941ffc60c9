// The part of ONNX Runtime's C interface that the operators use, declared by hand, so that the library
// builds anywhere without its headers. `OrtApi` is a table of function pointers that only ever grows
// at its end; slots are those of API version 18 (ONNX Runtime 1.18), and later versions keep them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

struct Status;
struct SessionOptions;
struct Domain;
struct Value;
struct Info;        // type and shape of a tensor
struct KernelInfo;  // of a node, while its kernel is made
struct Context;     // of a call
struct Memory;      // where a tensor lies

using Slot = const void* const;

struct ApiBase {
  Slot* (*get_api)(uint32_t version);
  const char* (*version)();
};

constexpr uint32_t API_VERSION = 18;

struct Allocator {
  uint32_t version;
  void* (*allocate)(Allocator*, size_t bytes);
  void (*free)(Allocator*, void* memory);
};

enum ElementType {
  UNDEFINED = 0, FLOAT = 1, INT8 = 3, INT32 = 6, INT64 = 7, BOOL = 9, FLOAT16 = 10,
  BFLOAT16 = 16, INT4 = 22
};
enum Characteristic { REQUIRED = 0, OPTIONAL = 1 };

// What ONNX Runtime asks of an operator (OrtCustomOp of API 18).
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, Slot*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  int (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  int (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void (*compute)(void*, Context*);
  void (*destroy)(void*);
  int (*input_characteristic)(const CustomOp*, size_t);
  int (*output_characteristic)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);
  int (*variadic_input_arity)(const CustomOp*);
  int (*variadic_input_homogeneity)(const CustomOp*);
  int (*variadic_output_arity)(const CustomOp*);
  int (*variadic_output_homogeneity)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, Slot*, const KernelInfo*, void**);
  Status* (*compute_v2)(void*, Context*);
  void* infer_shape;
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
  size_t (*may_inplace)(int** inputs, int** outputs);
  void (*release_may_inplace)(int* inputs, int* outputs);
  void* alias_map;
  void* release_alias_map;
};
static_assert(sizeof(CustomOp) == 208, "the layout of API 18 on a 64-bit machine");
static_assert(offsetof(CustomOp, create_kernel_v2) == 136 && offsetof(CustomOp, end_version) == 168,
              "the layout of API 18 on a 64-bit machine");

// The functions of the table that are used, with their types.
class Api {
 public:
  explicit Api(Slot* table) : table_(table) {}

  Status* create_status(const char* message) const {
    return at<Status*(int, const char*)>(0)(1, message);  // code 1: ORT_FAIL
  }
  Status* create_domain(const char* name, Domain** out) const {
    return at<Status*(const char*, Domain**)>(26)(name, out);
  }
  Status* add_op(Domain* domain, const CustomOp* op) const {
    return at<Status*(Domain*, const CustomOp*)>(27)(domain, op);
  }
  Status* add_domain(SessionOptions* options, Domain* domain) const {
    return at<Status*(SessionOptions*, Domain*)>(28)(options, domain);
  }
  Status* data(const Value* value, void** out) const {
    return at<Status*(Value*, void**)>(51)(const_cast<Value*>(value), out);
  }
  Status* element_type(const Info* info, int* out) const {
    return at<Status*(const Info*, int*)>(60)(info, out);
  }
  Status* rank(const Info* info, size_t* out) const {
    return at<Status*(const Info*, size_t*)>(61)(info, out);
  }
  Status* dimensions(const Info* info, int64_t* out, size_t count) const {
    return at<Status*(const Info*, int64_t*, size_t)>(62)(info, out, count);
  }
  Status* info(const Value* value, Info** out) const {
    return at<Status*(const Value*, Info**)>(65)(value, out);
  }
  void release(Info* info) const { at<void(Info*)>(99)(info); }
  Status* attribute(const KernelInfo* info, const char* name, float* out) const {
    return at<Status*(const KernelInfo*, const char*, float*)>(85)(info, name, out);
  }
  Status* attribute(const KernelInfo* info, const char* name, int64_t* out) const {
    return at<Status*(const KernelInfo*, const char*, int64_t*)>(86)(info, name, out);
  }
  Status* input(const Context* context, size_t index, const Value** out) const {
    return at<Status*(const Context*, size_t, const Value**)>(90)(context, index, out);
  }
  Status* output(Context* context, size_t index, const int64_t* shape, size_t rank,
                 Value** out) const {
    return at<Status*(Context*, size_t, const int64_t*, size_t, Value**)>(91)(context, index,
                                                                              shape, rank, out);
  }
  // The queue of a GPU that the call works on; null on the CPU.
  Status* stream(const Context* context, void** out) const {
    return at<Status*(const Context*, void**)>(193)(context, out);
  }
  Status* memory(const Value* value, const Memory** out) const {
    return at<Status*(const Value*, const Memory**)>(194)(value, out);
  }
  Status* allocator(const Context* context, const Memory* memory, Allocator** out) const {
    return at<Status*(const Context*, const Memory*, Allocator**)>(253)(context, memory, out);
  }
  void release(Allocator* allocator) const { at<void(Allocator*)>(132)(allocator); }
  // Memory that belongs to the stream of a call; the allocator frees it.
  Status* scratch(const Context* context, const Memory* memory, size_t bytes, void** out) const {
    return at<Status*(const Context*, const Memory*, size_t, void**)>(277)(context, memory, bytes,
                                                                           out);
  }
  Status* constant_input(const KernelInfo* info, size_t index, int* constant,
                         const Value** out) const {
    return at<Status*(const KernelInfo*, size_t, int*, const Value**)>(249)(info, index, constant,
                                                                            out);
  }
  // Calls work(user, i) for i in [0, count) on the threads of the session.
  Status* parallel_for(const Context* context, void (*work)(void*, size_t), size_t count,
                       void* user) const {
    return at<Status*(const Context*, void (*)(void*, size_t), size_t, size_t, void*)>(274)(
        context, work, count, 0, user);
  }

 private:
  template <class F>
  F* at(int slot) const {
    return reinterpret_cast<F*>(const_cast<void*>(table_[slot]));
  }
  Slot* table_;
};

}  // namespace ort
