// Launches the kernels of quantized linears; op.py says what they compute.
#pragma once

#include "../launch.h"

namespace dqx {

struct Linear {
  int64_t rows;              // of x (rows, depth) and y (rows, width)
  int32_t depth, width;
  int32_t group;             // inputs that share a weight scale or step
  int32_t activation_group;  // inputs that share an activation scale: depth, or a divisor of it
  float step;                // times the largest |x| of a token or group gives its scale
  int32_t weight_bits;       // 4 or 8
  int32_t activation_bits;   // 4 or 8; 16: x is not rounded, activation_group and step say nothing
  bool channel;              // scales (width,), 4 bits with integer steps; else scales a group
  bool gated;                // silu(x · gate) * (x · up)
  Float type;                // of x, bias and y
  Float scales;              // of weight scales
};

// One weight as ONNX has it, row-major: codes (depth, width), INT4 two a byte with the first in the
// low half; scales (ceil(depth / group), width), or (width,); steps (ceil(depth / group), width).
struct LinearWeight {
  const void* codes;
  const void* scales;
  const int8_t* steps;  // null where the format has none
};

// Which kernel multiplies, and how it divides the work.
enum class Path : int32_t { dp4a, mma8, mma4, halves, floats, wgmma };
struct Plan {
  Path path;
  int32_t rows;   // of a block
  int32_t parts;  // that the depth is divided into, at most
};

Plan plan_linear(const Linear& call);         // for the GPU that is in use
size_t linear_workspace(const Linear& call);  // bytes for that many rows, or fewer, by any plan

// By a plan; cudaErrorInvalidValue where its path does not take the call.
int launch_planned_linear(const Linear& call, const Plan& plan, const void* x,
                          const LinearWeight* weights, const void* bias, void* y, void* workspace,
                          Stream stream);

// `weights`: one, or gate and up; `bias` (width,) may be null.
int launch_linear(const Linear& call, const void* x, const LinearWeight* weights, const void* bias,
                  void* y, void* workspace, Stream stream);

}  // namespace dqx
