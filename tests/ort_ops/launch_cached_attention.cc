// C functions around the launcher of attention over a cache.
#include "cached_attention/launch.h"

extern "C" size_t size_of_call() { return sizeof(dqx::CachedAttention); }

extern "C" size_t workspace(const dqx::CachedAttention* call) {
  return dqx::cached_attention_workspace(*call);
}

extern "C" int launch(const dqx::CachedAttention* call, const dqx::CachedOperands* operands,
                      const dqx::CachedResults* results, void* memory) {
  return dqx::launch_cached_attention(*call, *operands, *results, memory, nullptr);
}
