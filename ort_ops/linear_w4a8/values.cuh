// What all kernels of linears read and write.
#pragma once

#include "../on_cpu.h"
#include "paths.h"

namespace dqx {
namespace {

__device__ __forceinline__ float value_at(const void* values, Float type, int64_t place) {
  switch (type) {
    case Float::fp16: return widened(static_cast<const Half*>(values)[place]);
    case Float::bf16: return widened(static_cast<const Bfloat*>(values)[place]);
    default: return static_cast<const float*>(values)[place];
  }
}

__device__ __forceinline__ void store(void* values, Float type, int64_t place, float value) {
  switch (type) {
    case Float::fp16: static_cast<Half*>(values)[place] = half_of(value); break;
    case Float::bf16: static_cast<Bfloat*>(values)[place] = bfloat_of(value); break;
    default: static_cast<float*>(values)[place] = value;
  }
}

// The first input behind `first` that does not share all scales with it.
__device__ __forceinline__ int run_end(const Linear& call, int first) {
  const int end = (first / call.activation_group + 1) * call.activation_group;
  if (call.channel) return end;
  const int other = (first / call.group + 1) * call.group;
  return other < end ? (other < call.depth ? other : call.depth) : end;
}

__device__ __forceinline__ float silu(float x) { return x / (1 + expf(-x)); }

// Blocks of `tile` that cover `length`.
inline unsigned tiles(int64_t length, int64_t tile) {
  return static_cast<unsigned>((length + tile - 1) / tile);
}

}  // namespace
}  // namespace dqx
