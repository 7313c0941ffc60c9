// C functions around the launchers, for ctypes.
#include "attention/launch.h"
#include "linear_w4a8/launch.h"

extern "C" size_t linear_workspace(const dqx::Linear* call) { return dqx::linear_workspace(*call); }

extern "C" int launch_linear(const dqx::Linear* call, const void* x,
                             const dqx::LinearWeight* weights, const void* bias, void* y,
                             void* workspace, void* stream) {
  return dqx::launch_linear(*call, x, weights, bias, y, workspace, stream);
}

extern "C" int launch_planned_linear(const dqx::Linear* call, const dqx::Plan* plan, const void* x,
                                     const dqx::LinearWeight* weights, const void* bias, void* y,
                                     void* workspace, void* stream) {
  return dqx::launch_planned_linear(*call, *plan, x, weights, bias, y, workspace, stream);
}

extern "C" int size_of_attention() { return sizeof(dqx::Attention); }

extern "C" size_t attention_workspace(const dqx::Attention* call) {
  return dqx::attention_workspace(*call);
}

extern "C" int launch_attention(const dqx::Attention* call, const void* q, const void* k,
                                const void* v, const bool* visible, const bool* common,
                                const void* v_scale, const void* v_zero, void* y, void* workspace,
                                void* stream) {
  return dqx::launch_attention(*call, q, k, v, visible, common, v_scale, v_zero, y, workspace,
                               stream);
}

#if __has_include("cached_attention/launch.h")
#include "cached_attention/launch.h"

extern "C" int size_of_cached_attention() { return sizeof(dqx::CachedAttention); }

extern "C" size_t cached_attention_workspace(const dqx::CachedAttention* call) {
  return dqx::cached_attention_workspace(*call);
}

extern "C" int launch_cached_attention(const dqx::CachedAttention* call,
                                       const dqx::CachedOperands* given,
                                       const dqx::CachedResults* results, void* workspace,
                                       void* stream) {
  return dqx::launch_cached_attention(*call, *given, *results, workspace, stream);
}
#endif
