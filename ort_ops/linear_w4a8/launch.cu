#include "launch.h"

#include "paths.h"
#include "round.cuh"

namespace dqx {
namespace {

constexpr size_t ALIGNMENT = 256;  // of what lies in the workspace
constexpr int INVALID_VALUE = 1;   // cudaErrorInvalidValue

size_t aligned(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

int64_t run_count(const Linear& call) { return call.rows * (call.depth / call.activation_group); }

size_t code_bytes(const Linear& call) {
  return aligned(static_cast<size_t>(call.rows) * static_cast<size_t>(call.depth));
}

size_t scale_bytes(const Linear& call) {
  return aligned(static_cast<size_t>(run_count(call)) * sizeof(float));
}

// Of the most parts of the depth that any plan may have.
size_t partial_bytes(const Linear& call) {
  const int64_t rows = call.rows < MOST_ROWS_IN_PARTS ? call.rows : MOST_ROWS_IN_PARTS;
  const size_t matrix = static_cast<size_t>(rows) * static_cast<size_t>(call.width);
  return matrix * sizeof(float) * MOST_PARTS * (call.gated ? 2 : 1);
}

template <class T>
int round_rows(const Linear& call, const void* x, bool packed, const Rounded& to, Stream stream) {
  const dim3 runs(static_cast<unsigned>(run_count(call)));
  const auto kernel = packed ? round_runs<T, true> : round_runs<T, false>;
  return launch<ROUND_THREADS>(kernel, runs, stream, call, static_cast<const T*>(x), to);
}

int round_rows(const Linear& call, const void* x, bool packed, const Rounded& to, Stream stream) {
  switch (call.type) {
    case Float::fp16: return round_rows<Half>(call, x, packed, to, stream);
    case Float::bf16: return round_rows<Bfloat>(call, x, packed, to, stream);
    default: return round_rows<float>(call, x, packed, to, stream);
  }
}

bool at_chunks(const LinearWeight& weight) {
  return reinterpret_cast<uintptr_t>(weight.codes) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(weight.steps) % 16 == 0;
}

}  // namespace

size_t linear_workspace(const Linear& call) {  // grows with the rows
  return code_bytes(call) + scale_bytes(call) + partial_bytes(call);
}

int launch_planned_linear(const Linear& call, const Plan& plan, const void* x,
                          const LinearWeight* weights, const void* bias, void* y, void* workspace,
                          Stream stream) {
  if (call.rows == 0) return 0;
  auto* codes = static_cast<int8_t*>(workspace);
  void* partial = codes + code_bytes(call) + scale_bytes(call);
  const Operands given{{codes, reinterpret_cast<float*>(codes + code_bytes(call))},
                       weights, bias, y, static_cast<float*>(partial)};
  const bool placed = at_chunks(weights[0]) && at_chunks(weights[call.gated ? 1 : 0]);
  const auto run = [&](bool fits, auto multiply) {
    if (!fits) return INVALID_VALUE;
    const int error = round_rows(call, x, plan.path == Path::mma4, given.x, stream);
    return error ? error : multiply(call, given, plan, stream);
  };
  switch (plan.path) {
    case Path::mma4: return run(placed && fits_mma4(call), multiply_by_mma4);
    case Path::mma8: return run(placed && fits_mma8(call), multiply_by_mma8);
    default: return run(fits_dp4a(call), multiply_by_dp4a);
  }
}

int launch_linear(const Linear& call, const void* x, const LinearWeight* weights, const void* bias,
                  void* y, void* workspace, Stream stream) {
  if (call.rows == 0) return 0;
  const bool placed = at_chunks(weights[0]) && at_chunks(weights[call.gated ? 1 : 0]);
  const Plan plan = placed ? plan_linear(call) : Plan{Path::dp4a, 32, 1};
  return launch_planned_linear(call, plan, x, weights, bias, y, workspace, stream);
}

}  // namespace dqx
