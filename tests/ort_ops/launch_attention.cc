// C functions around the launcher of attention.
#include "attention/launch.h"

extern "C" size_t size_of_call() { return sizeof(dqx::Attention); }

extern "C" size_t workspace(const dqx::Attention* call) { return dqx::attention_workspace(*call); }

extern "C" int launch(const dqx::Attention* call, const void* q, const void* k, const void* v,
                      const bool* visible, const bool* common, const void* v_scale,
                      const void* v_zero, void* y, void* memory) {
  return dqx::launch_attention(*call, q, k, v, visible, common, v_scale, v_zero, y, memory,
                               nullptr);
}
