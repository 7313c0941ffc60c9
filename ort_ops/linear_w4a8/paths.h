// The kernels that can multiply, a .cu file each, and what is chosen among them by.
#pragma once

#include "launch.h"

namespace dqx {

// One rounded x: codes (rows, depth), for mma4 two a byte; scales (rows, depth / activation_group).
struct Rounded {
  int8_t* codes;
  float* scales;
};

// What a kernel multiplies, and where it writes.
struct Operands {
  const void* input;  // x as it came
  Rounded x;          // nothing where inputs are of 16 bits
  const LinearWeight* weights;  // one, or gate and up
  const void* bias;             // may be null
  void* y;
  float* partial;  // of `partial_bytes`: what parts of the depth leave
};

// Parts of the depth leave at most so many bytes: memory is set aside before the GPU is known.
constexpr size_t MOST_PARTIAL_BYTES = 16 << 20;
constexpr int MOST_PARTS = 8, MOST_ROWS_IN_PARTS = 128;

// Bytes that one part leaves.
inline size_t part_bytes(const Linear& call) {
  return static_cast<size_t>(call.rows) * static_cast<size_t>(call.width) * sizeof(float) *
         (call.gated ? 2 : 1);
}

// A path: whether it takes a call (its weights begin at multiples of 16 bytes), and y of it.
bool fits_dp4a(const Linear& call);
int multiply_by_dp4a(const Linear& call, const Operands& given, const Plan& plan, Stream stream);

bool fits_mma4(const Linear& call);
int multiply_by_mma4(const Linear& call, const Operands& given, const Plan& plan, Stream stream);

bool fits_halves(const Linear& call);  // x and scales begin at multiples of 16 bytes, too
int multiply_by_halves(const Linear& call, const Operands& given, const Plan& plan, Stream stream);

bool fits_floats(const Linear& call);
int multiply_by_floats(const Linear& call, const Operands& given, const Plan& plan, Stream stream);

bool fits_mma8(const Linear& call);
int multiply_by_mma8(const Linear& call, const Operands& given, const Plan& plan, Stream stream);

constexpr int WGMMA_GPU = 90;  // compute capability, by ten: no other GPU has wgmma
bool fits_wgmma(const Linear& call);
int multiply_by_wgmma(const Linear& call, const Operands& given, const Plan& plan, Stream stream);

}  // namespace dqx
