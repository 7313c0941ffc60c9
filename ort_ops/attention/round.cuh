// Rounds queries, keys and values of attention; op.py says how.
#pragma once

#include "../on_cpu.h"
#include "launch.h"
#include "paths.h"

namespace dqx {
namespace {

constexpr float LEAST_SCALE = 0x1p-24f;
constexpr int LANES = 32;  // threads that share a vector
constexpr int MEAN_SLICES = 8, MEAN_THREADS = MEAN_SLICES * LANES;
constexpr int ROUND_VECTORS = 4, ROUND_THREADS = ROUND_VECTORS * LANES;

// The larger one; what is not a number wins.
#ifdef DQX_ON_CPU
inline float larger(float a, float b) { return a > b || a != a ? a : b; }
#else
__device__ __forceinline__ float larger(float a, float b) {
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
  return most;
}
#endif

__device__ __forceinline__ void store(float* to, float value) { *to = value; }
__device__ __forceinline__ void store(Half* to, float value) { *to = half_of(value); }

// The code of a value, 0 if it is not a number.
__device__ __forceinline__ int value_code(float value, float scale, float zero, int top) {
  const float code = rintf(value / scale) + zero;
  return static_cast<int>(fminf(fmaxf(code, 0), static_cast<float>(top)));
}

// The nearest half that is a number; 0 for what is none.
__device__ __forceinline__ Half half_in_range(float value) {
  constexpr float most = 65504;
  return half_of(value != value ? 0 : fminf(fmaxf(value, -most), most));
}

// The mean (batch, kv heads, width) of the common keys; zeros where there are none. A block
// has 32 channels of a head, each summed in slices of the keys.
template <class T>
__device__ __forceinline__ void mean_keys(const Attention& call, const T* k, const bool* common,
                                          float* mean, int64_t block) {
  const int share = (call.width + LANES - 1) / LANES;  // blocks of a head
  const int64_t head = block / share;
  const int first = static_cast<int>(block % share) * LANES;
  const bool* shown = common + head / call.kv_heads * call.keys;
  const T* keys = k + head * call.keys * call.width;
  __shared__ float sums[MEAN_SLICES][LANES];
  __shared__ int counts[MEAN_SLICES];
  each_thread<MEAN_THREADS>([&](int thread) {
    const int channel = first + thread % LANES;
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
    const int channel = first + thread;
    if (thread >= LANES || channel >= call.width) return;
    float sum = 0;
    int count = 0;
    for (int slice = 0; slice < MEAN_SLICES; ++slice) {
      sum += sums[slice][thread];
      count += counts[slice];
    }
    mean[head * call.width + channel] = sum * (1 / static_cast<float>(count > 0 ? count : 1));
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

__device__ __forceinline__ int64_t vector_of(int64_t block, int thread) {
  return block * ROUND_VECTORS + thread / LANES;
}

template <class T>
__device__ __forceinline__ float moved(const Rounding& to, const T* x, int64_t vector,
                                       int channel) {
  const float value = widened(x[vector * to.width + channel]);
  return to.mean ? value - to.mean[vector / to.sharing * to.width + channel] : value;
}

template <class T>
__device__ __forceinline__ void round_vectors(const Rounding& to, const T* x, int64_t block) {
  __shared__ float largest[ROUND_VECTORS][LANES];
  each_thread<ROUND_THREADS>([&](int thread) {
    const int64_t vector = vector_of(block, thread);
    if (vector >= to.vectors) return;
    float most = 0;
    for (int channel = thread % LANES; channel < to.width; channel += LANES) {
      most = larger(most, fabsf(moved(to, x, vector, channel)));
    }
    largest[thread / LANES][thread % LANES] = most;
  });
  each_thread<ROUND_THREADS>([&](int thread) {
    const int64_t vector = vector_of(block, thread);
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

// Values (batch, kv heads, keys, width) to what an Attend takes: codes less 128, or halves where
// v_top is 0. Where a value is not a number, the scale of its key becomes none: then it reaches all
// queries that see it, and no other. So keys are rounded before.
template <class T>
__device__ __forceinline__ void round_values(const Attention& call, const T* v, const T* v_scale,
                                             const T* v_zero, void* rounded, float* key_scales,
                                             int64_t block) {
  const int64_t vectors = int64_t{call.batch} * call.kv_heads * call.keys;
  __shared__ bool broken[ROUND_VECTORS];
  each_thread<ROUND_THREADS>([&](int thread) {
    if (thread < ROUND_VECTORS) broken[thread] = false;
  });
  each_thread<ROUND_THREADS>([&](int thread) {
    const int64_t vector = vector_of(block, thread);
    if (vector >= vectors) return;
    const int64_t head = vector / call.keys % call.kv_heads;
    for (int channel = thread % LANES; channel < call.width; channel += LANES) {
      const int64_t place = vector * call.width + channel;
      const float value = widened(v[place]);
      if (value != value) broken[thread / LANES] = true;
      if (call.v_top == 0) {
        static_cast<Half*>(rounded)[place] = half_in_range(value);
      } else {
        const int64_t of_head = head * call.width + channel;
        const int code = value_code(value, widened(v_scale[of_head]), widened(v_zero[of_head]),
                                    call.v_top);
        static_cast<int8_t*>(rounded)[place] = static_cast<int8_t>(code - 128);
      }
    }
  });
  each_thread<ROUND_THREADS>([&](int thread) {
    const int64_t vector = vector_of(block, thread);
    if (vector >= vectors || thread % LANES) return;
    if (broken[thread / LANES]) key_scales[vector] = NAN;
  });
}

// `visible(query, key)` in bits (queries, keys / SEEN_KEYS), zeros behind the last key: word `index`
// of all.
template <class Visible>
__device__ __forceinline__ void pack_seen(int64_t queries, int keys, Seen* seen, int64_t index,
                                          const Visible& visible) {
  const int words = (keys + SEEN_KEYS - 1) / SEEN_KEYS * 2;
  const int64_t query = index / words;
  if (query >= queries) return;
  const int first = static_cast<int>(index % words) * 32;
  uint32_t word = 0;
  for (int key = 0; key < 32 && first + key < keys; ++key) {
    if (visible(query, first + key)) word |= 1u << key;
  }
  seen[index / 2].word[index % 2] = word;
}

}  // namespace
}  // namespace dqx
