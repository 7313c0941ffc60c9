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

// Numbers side by side; they begin at a multiple of their size, or of 16 bytes.
template <class T, int count>
struct alignas(count * sizeof(T) < 16 ? count * sizeof(T) : 16) Row {
  T of[count];
};

template <class T, int count>
__device__ __forceinline__ void read_row(const void* from, int64_t place, float (&to)[count]) {
  const auto row = *reinterpret_cast<const Row<T, count>*>(static_cast<const T*>(from) + place);
  DQX_UNROLL
  for (int i = 0; i < count; ++i) to[i] = widened(row.of[i]);
}

template <int count>
__device__ __forceinline__ void read_row(const void* from, Float type, int64_t place,
                                         float (&to)[count]) {
  switch (type) {
    case Float::fp16: read_row<Half>(from, place, to); break;
    case Float::bf16: read_row<Bfloat>(from, place, to); break;
    default: read_row<float>(from, place, to);
  }
}

__device__ __forceinline__ void store(void* values, Float type, int64_t place, float value) {
  switch (type) {
    case Float::fp16: static_cast<Half*>(values)[place] = half_of(value); break;
    case Float::bf16: static_cast<Bfloat*>(values)[place] = bfloat_of(value); break;
    default: static_cast<float*>(values)[place] = value;
  }
}

template <int count>
__device__ __forceinline__ void store_row(void* to, Float type, int64_t place,
                                          const float (&values)[count]) {
  if (type == Float::fp32) {
    Row<float, count> row;
    DQX_UNROLL
    for (int i = 0; i < count; ++i) row.of[i] = values[i];
    *reinterpret_cast<Row<float, count>*>(static_cast<float*>(to) + place) = row;
  } else if (type == Float::fp16) {
    Row<Half, count> row;
    DQX_UNROLL
    for (int i = 0; i < count; ++i) row.of[i] = half_of(values[i]);
    *reinterpret_cast<Row<Half, count>*>(static_cast<Half*>(to) + place) = row;
  } else {
    Row<Bfloat, count> row;
    DQX_UNROLL
    for (int i = 0; i < count; ++i) row.of[i] = bfloat_of(values[i]);
    *reinterpret_cast<Row<Bfloat, count>*>(static_cast<Bfloat*>(to) + place) = row;
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
