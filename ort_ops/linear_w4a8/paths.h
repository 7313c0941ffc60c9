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
  Rounded x;
  const LinearWeight* weights;  // one, or gate and up
  const void* bias;             // may be null
  void* y;
  float* partial;  // of `partial_bytes`: what parts of the depth leave
};

constexpr int MOST_PARTS = 8, MOST_ROWS_IN_PARTS = 128;

// A path: whether it takes a call (its weights begin at multiples of 16 bytes), and y of it.
bool fits_dp4a(const Linear& call);
int multiply_by_dp4a(const Linear& call, const Operands& given, const Plan& plan, Stream stream);

bool fits_mma4(const Linear& call);
int multiply_by_mma4(const Linear& call, const Operands& given, const Plan& plan, Stream stream);

bool fits_mma8(const Linear& call);
int multiply_by_mma8(const Linear& call, const Operands& given, const Plan& plan, Stream stream);

}  // namespace dqx
