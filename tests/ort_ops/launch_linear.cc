// C functions around the launcher of linears.
#include "linear_w4a8/launch.h"
#include "on_cpu.h"

extern "C" size_t size_of_call() { return sizeof(dqx::Linear); }

extern "C" size_t workspace(const dqx::Linear* call) { return dqx::linear_workspace(*call); }

extern "C" int launch(const dqx::Linear* call, const void* x, const dqx::LinearWeight* weights,
                      const void* bias, void* y, void* memory) {
  return dqx::launch_linear(*call, x, weights, bias, y, memory, nullptr);
}

extern "C" void plan(const dqx::Linear* call, dqx::Plan* made) { *made = dqx::plan_linear(*call); }

extern "C" int launch_planned(const dqx::Linear* call, const dqx::Plan* plan, const void* x,
                              const dqx::LinearWeight* weights, const void* bias, void* y,
                              void* memory) {
  return dqx::launch_planned_linear(*call, *plan, x, weights, bias, y, memory, nullptr);
}

// Makes the host stand for GPUs of this compute capability, by ten; the capability of what is used.
extern "C" int stand_for([[maybe_unused]] int capability) {
#ifdef DQX_ON_CPU
  dqx::host_capability = capability;
#endif
  return dqx::compute_capability();
}
