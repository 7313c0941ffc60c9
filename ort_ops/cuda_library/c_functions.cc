// C functions around the launchers, for ctypes.
#include "attention/launch.h"
#include "cached_attention/launch.h"
#include "kv_update/launch.h"
#include "linear_w4a8/launch.h"

#pragma GCC visibility push(default)
extern "C" {

size_t size_of_linear() { return sizeof(dqx::Linear); }
size_t size_of_attention() { return sizeof(dqx::Attention); }
size_t size_of_cached_attention() { return sizeof(dqx::CachedAttention); }
size_t size_of_kv_update() { return sizeof(dqx::KvUpdate); }

size_t linear_workspace(const dqx::Linear* call) { return dqx::linear_workspace(*call); }

int launch_linear(const dqx::Linear* call, const void* x, const dqx::LinearWeight* weights,
                  const void* bias, void* y, void* workspace, void* stream) {
  return dqx::launch_linear(*call, x, weights, bias, y, workspace, stream);
}

int launch_planned_linear(const dqx::Linear* call, const dqx::Plan* plan, const void* x,
                          const dqx::LinearWeight* weights, const void* bias, void* y,
                          void* workspace, void* stream) {
  return dqx::launch_planned_linear(*call, *plan, x, weights, bias, y, workspace, stream);
}

size_t attention_workspace(const dqx::Attention* call) { return dqx::attention_workspace(*call); }

int launch_attention(const dqx::Attention* call, const void* q, const void* k, const void* v,
                     const bool* visible, const bool* common, const void* v_scale,
                     const void* v_zero, void* y, void* workspace, void* stream) {
  return dqx::launch_attention(*call, q, k, v, visible, common, v_scale, v_zero, y, workspace,
                               stream);
}

size_t cached_attention_workspace(const dqx::CachedAttention* call) {
  return dqx::cached_attention_workspace(*call);
}

int launch_cached_attention(const dqx::CachedAttention* call, const dqx::CachedOperands* given,
                            const dqx::CachedResults* results, void* workspace, void* stream) {
  return dqx::launch_cached_attention(*call, *given, *results, workspace, stream);
}

int launch_kv_update(const dqx::KvUpdate* call, const void* cache, const void* fresh,
                     const int64_t* start, void* y, void* stream) {
  return dqx::launch_kv_update(*call, cache, fresh, start, y, stream);
}

}  // extern "C"
#pragma GCC visibility pop
