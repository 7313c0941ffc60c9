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
  if (call.activation_bits == 16) return 0;
  return aligned(static_cast<size_t>(call.rows) * static_cast<size_t>(call.depth));
}

size_t scale_bytes(const Linear& call) {
  if (call.activation_bits == 16) return 0;
  return aligned(static_cast<size_t>(run_count(call)) * sizeof(float));
}

// Of the most parts of the depth that any plan may have for that many rows, or fewer.
size_t partial_bytes(const Linear& call) {
  const size_t most = part_bytes(call) * MOST_PARTS;
  return most < MOST_PARTIAL_BYTES ? most : MOST_PARTIAL_BYTES;
}

// Whether the parts of a plan have room.
bool has_room(const Linear& call, const Plan& plan) {
  return plan.parts == 1 ||
         (plan.parts > 1 && static_cast<size_t>(plan.parts) * part_bytes(call) <= partial_bytes(call));
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

// Whether all that kernels for tensor cores read and write begins at multiples of 16 bytes.
bool at_chunks(const Linear& call, const void* x, const LinearWeight* weights, const void* bias,
               const void* y) {
  const auto begins = [](const void* memory) {
    return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
  };
  bool all = begins(bias) && begins(y) && (call.activation_bits < 16 || begins(x));
  for (int i = 0; i < (call.gated ? 2 : 1); ++i) {
    all = all && begins(weights[i].codes) && begins(weights[i].steps) && begins(weights[i].scales);
  }
  return all;
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
  const Operands given{x, {codes, reinterpret_cast<float*>(codes + code_bytes(call))},
                       weights, bias, y, static_cast<float*>(partial)};
  const bool placed = at_chunks(call, x, weights, bias, y);
  const auto run = [&](bool fits, auto multiply) {
    if (!fits || !has_room(call, plan)) return INVALID_VALUE;
    const bool packed = plan.path == Path::mma4, taken = call.activation_bits == 16;
    const int error = taken ? 0 : round_rows(call, x, packed, given.x, stream);
    return error ? error : multiply(call, given, plan, stream);
  };
  switch (plan.path) {
    case Path::halves: return run(placed && fits_halves(call), multiply_by_halves);
    case Path::floats: return run(fits_floats(call), multiply_by_floats);
    case Path::mma4: return run(placed && fits_mma4(call), multiply_by_mma4);
    case Path::wgmma: return run(placed && fits_wgmma(call), multiply_by_wgmma);
    case Path::mma8: return run(placed && fits_mma8(call), multiply_by_mma8);
    default: return run(fits_dp4a(call), multiply_by_dp4a);
  }
}

int launch_linear(const Linear& call, const void* x, const LinearWeight* weights, const void* bias,
                  void* y, void* workspace, Stream stream) {
  if (call.rows == 0) return 0;
  const bool placed = at_chunks(call, x, weights, bias, y);
  const Plan plain{call.activation_bits == 16 ? Path::floats : Path::dp4a, 32, 1};
  const Plan plan = placed ? plan_linear(call) : plain;
  return launch_planned_linear(call, plan, x, weights, bias, y, workspace, stream);
}

}  // namespace dqx
