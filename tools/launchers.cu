// C functions around the launchers, for ctypes.
#include "linear_w4a8/launch.h"

extern "C" size_t linear_workspace(const dqx::Linear* call) { return dqx::linear_workspace(*call); }

extern "C" int launch_linear(const dqx::Linear* call, const void* x,
                             const dqx::LinearWeight* weights, const void* bias, void* y,
                             void* workspace, void* stream) {
  return dqx::launch_linear(*call, x, weights, bias, y, workspace, stream);
}
