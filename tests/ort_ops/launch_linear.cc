// C functions around the launcher of linears.
#include "linear_w4a8/launch.h"

extern "C" size_t size_of_call() { return sizeof(dqx::Linear); }

extern "C" size_t workspace(const dqx::Linear* call) { return dqx::linear_workspace(*call); }

extern "C" int launch(const dqx::Linear* call, const void* x, const dqx::LinearWeight* weights,
                      const void* bias, void* y, void* memory) {
  return dqx::launch_linear(*call, x, weights, bias, y, memory, nullptr);
}
