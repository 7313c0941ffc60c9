// The linear for one kind of machine: how rows become integers, and panels of outputs.
#pragma once

#include "layout.h"

namespace dqx {

struct Kernel {
  const char* name;
  // Rows [first, last) of x (rows, inputs) into codes, sums and scales.
  void (*quantize)(const Weights& w, const float* x, int64_t first, int64_t last,
                   const Activations& a);
  // Outputs of one panel for rows [first, last): y (rows, outputs). At most ROW_BLOCK rows.
  void (*panel)(const Weights& w, const Activations& a, int64_t panel, int64_t first, int64_t last,
                float* y);
};

// The kernels of this kind of machine that run here, from the fastest to the portable one.
std::vector<const Kernel*> kernels_here();

// The first of them, or the one that the environment variable DQX_KERNEL names; null where that is
// unknown or does not run here.
const Kernel* choose_kernel();

}  // namespace dqx
