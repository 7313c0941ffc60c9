// Rounds queries, keys and values of attention; op.py says how.
#pragma once

#include "../on_cpu.h"
#include "launch.h"

namespace dqx {
namespace {

constexpr float LEAST_SCALE = 0x1p-24f;
constexpr int LANES = 32;  // threads that share a vector
constexpr int MEAN_SLICES = 8, MEAN_THREADS = MEAN_SLICES * LANES;
constexpr int ROUND_VECTORS = 4, ROUND_THREADS = ROUND_VECTORS * LANES;
constexpr int QUAD = 4;         // keys whose values of one channel are one word
constexpr int ROUND_KEYS = 16;  // keys whose values a block rounds

// The larger one; what is not a number wins.
__device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }

// The mean (batch, kv heads, width) of the common keys; not a number where there are none. A block
// has 32 channels of a head, each summed in slices of the keys.
template <class T>
__global__ void __launch_bounds__(MEAN_THREADS)
    mean_keys(Attention call, const T* k, const bool* common, float* mean) {
  const int64_t head = blockIdx.y;
  const bool* shown = common + head / call.kv_heads * call.keys;
  const T* keys = k + head * call.keys * call.width;
  __shared__ float sums[MEAN_SLICES][LANES];
  __shared__ int counts[MEAN_SLICES];
  each_thread<MEAN_THREADS>([&](int thread) {
    const int channel = static_cast<int>(blockIdx.x) * LANES + thread % LANES;
    float sum = 0;
    int count = 0;
    for (int key = thread / LANES; key < call.keys; key += MEAN_SLICES) {
      if (!shown[key]) continue;
      ++count;
      if (channel < call.width) sum += widened(keys[int64_t{key} * call.width + channel]);
    }
    sums[thread / LANES][thread % LANES] = sum;
    if (thread % LANES == 0) counts[thread / LANES] = count;
  });
  each_thread<MEAN_THREADS>([&](int thread) {
    const int channel = static_cast<int>(blockIdx.x) * LANES + thread;
    if (thread >= LANES || channel >= call.width) return;
    float sum = 0;
    int count = 0;
    for (int slice = 0; slice < MEAN_SLICES; ++slice) {
      sum += sums[slice][thread];
      count += counts[slice];
    }
    mean[head * call.width + channel] = sum * (1 / static_cast<float>(count));
  });
}

// Vectors and what they are rounded to: `depth` codes each, zeros behind the first `width`, and a
// scale each, which is not a number where the vector has an infinite one or none.
struct Rounding {
  int64_t vectors;
  int64_t sharing;  // vectors that share a mean, which is taken off first
  const float* mean;  // null: none
  int32_t width, depth, top;
  int8_t* codes;
  float* scales;
};

__device__ __forceinline__ int64_t vector_of(int thread) {
  return int64_t{blockIdx.x} * ROUND_VECTORS + thread / LANES;
}

template <class T>
__device__ __forceinline__ float moved(const Rounding& to, const T* x, int64_t vector,
                                       int channel) {
  const float value = widened(x[vector * to.width + channel]);
  return to.mean ? value - to.mean[vector / to.sharing * to.width + channel] : value;
}

template <class T>
__global__ void __launch_bounds__(ROUND_THREADS) round_vectors(Rounding to, const T* x) {
  __shared__ float largest[ROUND_VECTORS][LANES];
  each_thread<ROUND_THREADS>([&](int thread) {
    const int64_t vector = vector_of(thread);
    if (vector >= to.vectors) return;
    float most = 0;
    for (int channel = thread % LANES; channel < to.width; channel += LANES) {
      most = larger(most, fabsf(moved(to, x, vector, channel)));
    }
    largest[thread / LANES][thread % LANES] = most;
  });
  each_thread<ROUND_THREADS>([&](int thread) {
    const int64_t vector = vector_of(thread);
    if (vector >= to.vectors) return;
    float most = 0;
    for (int lane = 0; lane < LANES; ++lane) most = larger(most, largest[thread / LANES][lane]);
    const auto top = static_cast<float>(to.top);
    const float wanted = most * (1 / top);
    const float scale = wanted < LEAST_SCALE ? LEAST_SCALE : wanted;
    for (int channel = thread % LANES; channel < to.depth; channel += LANES) {
      const float value = channel < to.width ? moved(to, x, vector, channel) : 0;
      const float code = fminf(fmaxf(rintf(value / scale), -top - 1), top);
      to.codes[vector * to.depth + channel] = static_cast<int8_t>(code);
    }
    // an infinite scale would make a score of -inf, which hides a key
    if (thread % LANES == 0) to.scales[vector] = scale + (scale - scale);
  });
}

// A channel's codes of a block's keys.
struct alignas(16) ValueCodes {
  unsigned word[ROUND_KEYS / QUAD];
};

// Codes of values (batch, kv heads, width, blocks of ROUND_KEYS keys), zeros behind the last key.
// Where a value is not a number, the scale of its key becomes none: then it reaches all queries
// that see it, and no other.
template <class T>
__global__ void __launch_bounds__(ROUND_THREADS)
    round_values(Attention call, const T* v, const T* v_scale, const T* v_zero, ValueCodes* codes,
                 float* key_scales) {
  const int64_t head = blockIdx.y;
  const int first = static_cast<int>(blockIdx.x) * ROUND_KEYS;
  const int blocks = (call.keys + ROUND_KEYS - 1) / ROUND_KEYS;
  const T* values = v + head * call.keys * call.width;
  __shared__ bool broken[ROUND_KEYS];
  each_thread<ROUND_THREADS>([&](int thread) {
    if (thread < ROUND_KEYS) broken[thread] = false;
  });
  each_thread<ROUND_THREADS>([&](int thread) {
    for (int channel = thread; channel < call.width; channel += ROUND_THREADS) {
      const int64_t place = head % call.kv_heads * call.width + channel;
      const float scale = widened(v_scale[place]), zero = widened(v_zero[place]);
      ValueCodes row{};
      DQX_UNROLL
      for (int key = 0; key < ROUND_KEYS; ++key) {
        if (first + key >= call.keys) break;
        const float value = widened(values[int64_t{first + key} * call.width + channel]);
        if (value != value) broken[key] = true;
        const float code = rintf(value / scale) + zero;
        const float kept = fminf(fmaxf(code, 0), static_cast<float>(call.v_top));
        row.word[key / QUAD] |= static_cast<unsigned>(kept) << key % QUAD * 8;
      }
      codes[(head * call.width + channel) * blocks + blockIdx.x] = row;
    }
  });
  each_thread<ROUND_THREADS>([&](int thread) {
    if (thread >= ROUND_KEYS || first + thread >= call.keys) return;
    if (broken[thread]) key_scales[head * call.keys + first + thread] = NAN;
  });
}

// Whether a query sees each of 64 keys: a bit each.
constexpr int SEEN_KEYS = 64;
struct alignas(8) Seen {
  uint32_t word[2];
};

// `visible` (batch, queries, keys) in bits (batch, queries, keys / SEEN_KEYS), zeros behind the
// last key. A thread makes one word.
__global__ void __launch_bounds__(ROUND_THREADS)
    pack_visible(Attention call, const bool* visible, Seen* seen) {
  each_thread<ROUND_THREADS>([&](int thread) {
    const int words = (call.keys + SEEN_KEYS - 1) / SEEN_KEYS * 2;
    const int64_t index = int64_t{blockIdx.x} * ROUND_THREADS + thread, query = index / words;
    if (query >= int64_t{call.batch} * call.queries) return;
    const int first = static_cast<int>(index % words) * 32;
    const bool* from = visible + query * call.keys + first;
    uint32_t word = 0;
    for (int key = 0; key < 32 && first + key < call.keys; ++key) {
      if (from[key]) word |= 1u << key;
    }
    seen[index / 2].word[index % 2] = word;
  });
}

}  // namespace
}  // namespace dqx
