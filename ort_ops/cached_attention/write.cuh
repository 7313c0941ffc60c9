// Rounds queries, and keys and values into their caches; op.py says how.
#pragma once

#include "../attention/round.cuh"
#include "../warp.cuh"
#include "launch.h"

namespace dqx {
namespace {

// A channel of a vector, rotated, in fp32. `turn`: where its position's cosines and sines are.
template <class T>
__device__ __forceinline__ float turned(const CachedAttention& call, const CachedOperands& from,
                                        const T* vector, int64_t turn, int channel) {
  const int half = call.rotary / 2;
  const float value = widened(vector[channel]);
  if (channel >= 2 * half) return value;
  const int angle = channel < half ? channel : channel - half;
  const float cos = widened(static_cast<const T*>(from.cos)[turn * half + angle]);
  const float sin = widened(static_cast<const T*>(from.sin)[turn * half + angle]);
  const float other = widened(vector[channel < half ? channel + half : angle]);
  const float moved = __fmul_rn(value, cos), added = __fmul_rn(other, sin);
  return channel < half ? moved - added : moved + added;
}

__device__ __forceinline__ float scale_of(const float* largest, int top) {
  float most = 0;
  for (int lane = 0; lane < LANES; ++lane) most = larger(most, largest[lane]);
  const float wanted = most * (1 / static_cast<float>(top));
  return wanted < LEAST_SCALE ? LEAST_SCALE : wanted;
}

__device__ __forceinline__ int code_of(float value, float scale, int top) {
  const auto most = static_cast<float>(top);
  return static_cast<int>(fminf(fmaxf(rintf(value / scale), -most), most));
}

// Codes (batch, queries, heads, width up to a multiple of 4) and scales; not a number where the
// vector has an infinite one or none.
template <class T>
__device__ __forceinline__ void round_queries(const CachedAttention& call,
                                              const CachedOperands& from, int8_t* codes,
                                              float* scales, int64_t block) {
  const int64_t vectors = int64_t{call.batch} * call.queries * call.heads;
  const int depth = (call.width + 3) / 4 * 4;
  __shared__ float largest[ROUND_VECTORS][LANES];
  const auto value_of = [&](int64_t vector, int channel) {
    return turned(call, from, static_cast<const T*>(from.q) + vector * call.width,
                  vector / call.heads, channel);
  };
  each_thread<ROUND_THREADS>([&](int thread) {
    const int64_t vector = vector_of(block, thread);
    if (vector >= vectors) return;
    float most = 0;
    for (int channel = thread % LANES; channel < call.width; channel += LANES) {
      most = larger(most, fabsf(value_of(vector, channel)));
    }
    largest[thread / LANES][thread % LANES] = most;
  });
  each_thread<ROUND_THREADS>([&](int thread) {
    const int64_t vector = vector_of(block, thread);
    if (vector >= vectors) return;
    const float scale = scale_of(largest[thread / LANES], call.q_top);
    for (int channel = thread % LANES; channel < depth; channel += LANES) {
      const float value = channel < call.width ? value_of(vector, channel) : 0;
      codes[vector * depth + channel] = static_cast<int8_t>(code_of(value, scale, call.q_top));
    }
    if (thread % LANES == 0) scales[vector] = scale + (scale - scale);
  });
}

// Where a fed vector of keys or values comes from and goes to.
struct Fed {
  int64_t place;     // vector of the cache; -1: it has none there
  int64_t from;      // vector of what is fed
  int64_t position;  // of those fed in all sequences
  int head;
};

__device__ __forceinline__ Fed fed_vector(const CachedAttention& call, const CachedOperands& from,
                                          int64_t vector) {
  const int64_t position = vector / call.kv_heads, sequence = position / call.queries;
  const int head = static_cast<int>(vector % call.kv_heads);
  const int64_t at = from.start[sequence] + position % call.queries;
  const int64_t plane = sequence * call.kv_heads + head;
  const bool there = at >= 0 && at < call.capacity;
  return {there ? plane * call.capacity + at : -1, vector, position, head};
}

// Writes the codes `code(channel)` of one vector, which has `lane` of LANES threads: two a byte, or
// one.
template <class Code>
__device__ __forceinline__ void write_codes(int bits, int width, int8_t* to, int lane,
                                            const Code& code) {
  if (bits == 8) {
    for (int i = lane; i < width; i += LANES) to[i] = static_cast<int8_t>(code(i));
    return;
  }
  for (int i = lane; i < width / 2; i += LANES) {
    to[i] = static_cast<int8_t>(code(i) | code(i + width / 2) << 4);
  }
}

template <class T>
__device__ __forceinline__ void write_value(const CachedAttention& call,
                                            const CachedOperands& from, const Fed& fed,
                                            void* cache, int lane) {
  const T* values = static_cast<const T*>(from.v) + fed.from * call.width;
  if (call.v_bits == 16) {
    T* to = static_cast<T*>(cache) + fed.place * call.width;
    for (int i = lane; i < call.width; i += LANES) to[i] = values[i];
    return;
  }
  const T* scales = static_cast<const T*>(from.v_scale) + fed.head * call.width;
  const T* zeros = static_cast<const T*>(from.v_zero) + fed.head * call.width;
  const int top = call.v_bits == 8 ? 255 : 15, less = call.v_bits == 8 ? 128 : 0;
  int8_t* to = static_cast<int8_t*>(cache) + fed.place * (call.width * call.v_bits / 8);
  write_codes(call.v_bits, call.width, to, lane, [&](int i) {
    return value_code(widened(values[i]), widened(scales[i]), widened(zeros[i]), top) - less;
  });
}

// Fed keys and their scales to their places in the caches; scales as floats, too, unless they are.
template <class T>
__device__ __forceinline__ void write_keys(const CachedAttention& call, const CachedOperands& from,
                                           const CachedResults& to, float* wide, int64_t block) {
  const int64_t vectors = int64_t{call.batch} * call.queries * call.kv_heads;
  __shared__ float largest[ROUND_VECTORS][LANES];
  const auto value_of = [&](const Fed& fed, int channel) {
    const float mean = widened(static_cast<const T*>(from.k_mean)[fed.head * call.width + channel]);
    return turned(call, from, static_cast<const T*>(from.k) + fed.from * call.width, fed.position,
                  channel) - mean;
  };
  each_thread<ROUND_THREADS>([&](int thread) {
    const int64_t vector = vector_of(block, thread);
    if (vector >= vectors) return;
    const Fed fed = fed_vector(call, from, vector);
    float most = 0;
    for (int channel = thread % LANES; channel < call.width; channel += LANES) {
      most = larger(most, fabsf(value_of(fed, channel)));
    }
    largest[thread / LANES][thread % LANES] = most;
  });
  each_thread<ROUND_THREADS>([&](int thread) {
    const int64_t vector = vector_of(block, thread);
    if (vector >= vectors) return;
    const Fed fed = fed_vector(call, from, vector);
    if (fed.place < 0) return;
    const int top = call.k_bits == 8 ? 127 : 7, more = call.k_bits == 8 ? 0 : 8;
    T* kept = static_cast<T*>(to.k_scales) + fed.place;
    T held;  // codes are those of the scale that is kept
    store(&held, scale_of(largest[thread / LANES], top));
    const float scale = widened(held);
    int8_t* codes = to.k_cache + fed.place * (call.width * call.k_bits / 8);
    write_codes(call.k_bits, call.width, codes, thread % LANES, [&](int channel) {
      return code_of(value_of(fed, channel), scale, top) + more;
    });
    if (thread % LANES) return;
    *kept = held;
    if (wide) wide[fed.place] = scale;
  });
}

// Likewise the values.
template <class T>
__device__ __forceinline__ void write_values(const CachedAttention& call,
                                             const CachedOperands& from, void* cache,
                                             int64_t block) {
  const int64_t vectors = int64_t{call.batch} * call.queries * call.kv_heads;
  each_thread<ROUND_THREADS>([&](int thread) {
    const int64_t vector = vector_of(block, thread);
    if (vector >= vectors) return;
    const Fed fed = fed_vector(call, from, vector);
    if (fed.place >= 0) write_value<T>(call, from, fed, cache, thread % LANES);
  });
}

// The scales as floats of keys that were in the cache before. A thread has one.
__device__ __forceinline__ void widen_scales(const CachedAttention& call,
                                             const CachedOperands& from, const Half* scales,
                                             float* wide, int64_t block) {
  each_thread<ROUND_THREADS>([&](int thread) {
    const int64_t vector = block * ROUND_THREADS + thread, plane = vector / call.capacity;
    if (plane >= int64_t{call.batch} * call.kv_heads) return;
    const int64_t behind = vector % call.capacity - from.start[plane / call.kv_heads];
    if (behind < 0 || behind >= call.queries) wide[vector] = widened(scales[vector]);
  });
}

// Who sees whom: the keys of blocks up to `reach`. A thread makes one word.
__device__ __forceinline__ void pack_blocks(const CachedAttention& call,
                                            const CachedOperands& from, Seen* seen,
                                            int64_t block) {
  each_thread<ROUND_THREADS>([&](int thread) {
    pack_seen(int64_t{call.batch} * call.queries, call.capacity, seen,
              block * ROUND_THREADS + thread, [&](int64_t query, int key) {
                const int64_t sequence = query / call.queries;
                return from.key_block[sequence * call.capacity + key] <= from.reach[query];
              });
  });
}

}  // namespace
}  // namespace dqx
