// Attention on rounded queries, keys and values, for heads of any width; op.py says what it
// computes.
#pragma once

#include "../on_cpu.h"
#include "launch.h"
#include "round.cuh"

namespace dqx {
namespace {

// A block has 32 queries of one head and goes over its keys, 64 at a time, twice: probabilities are
// rounded when their sum is known. A thread has 4 queries, and every 16th key or channel.
constexpr int QUERY_TILE = 32, KEY_TILE = 64, SIDE = 4, STRIDE = 16;
constexpr int ATTEND_THREADS = QUERY_TILE / SIDE * STRIDE;
constexpr int KEYS_EACH = KEY_TILE / STRIDE, KEY_QUADS = KEY_TILE / QUAD;
constexpr float NEVER = -0x1.fffffep127f;  // the score of what is not seen

// Codes are four a word: of q and k channels, of v keys.
struct RoundedOperands {
  const int* q;           // (batch, queries, heads, words)
  const float* q_scales;  // (batch, queries, heads)
  const int* k;           // (batch, kv heads, keys, words)
  const float* k_scales;  // (batch, kv heads, keys)
  const unsigned* v;      // (batch, kv heads, width, quads of keys)
  int32_t words, quads;   // of a vector of q or k, of a channel of v
};

// One more word than a vector has keeps threads that read one word of many vectors off each other's
// banks of memory.
template <int channels>
struct AttendTiles {
  int q[QUERY_TILE][channels / 4 + 1];
  int k[KEY_TILE][channels / 4 + 1];
  unsigned v[channels][KEY_QUADS + 1];
  unsigned p[QUERY_TILE][KEY_QUADS];
  float q_scales[QUERY_TILE], k_scales[KEY_TILE];
  float most[QUERY_TILE][STRIDE], total[QUERY_TILE][STRIDE];
};

// What the block works on.
struct Place {
  int64_t query;    // the first, of those of all sequences
  int queries;      // of them
  int head;
  int64_t kv_head;  // of those of all sequences
};

// Of `most` queries a block.
template <int most>
__device__ __forceinline__ Place place_of_block(const Attention& call) {
  const int first = static_cast<int>(blockIdx.x) * most;
  const int head = static_cast<int>(blockIdx.y), left = call.queries - first;
  const int64_t sequence = blockIdx.z;
  return {sequence * call.queries + first, left < most ? left : most, head,
          sequence * call.kv_heads + head / (call.heads / call.kv_heads)};
}

// Scores of a thread's queries and keys, NEVER where a query does not see a key.
struct Scores {
  float at[SIDE][KEYS_EACH];
};

struct Softmax {
  float most[SIDE], total[SIDE];
};

template <int channels>
struct Products {
  unsigned at[SIDE][channels / STRIDE];
  unsigned codes[SIDE];  // sums of probabilities alone
};

__device__ __forceinline__ int row_of(int thread) { return thread / STRIDE * SIDE; }

template <int channels>
__device__ __forceinline__ void load_queries(const Attention& call, const RoundedOperands& from,
                                             const Place& place, AttendTiles<channels>& tiles) {
  each_thread<ATTEND_THREADS>([&](int thread) {
    for (int i = thread; i < QUERY_TILE * from.words; i += ATTEND_THREADS) {
      const int row = i / from.words, word = i % from.words;
      const int64_t vector = (place.query + row) * call.heads + place.head;
      tiles.q[row][word] = row < place.queries ? from.q[vector * from.words + word] : 0;
      if (word == 0) tiles.q_scales[row] = row < place.queries ? from.q_scales[vector] : 0;
    }
  });
}

template <int channels>
__device__ __forceinline__ void load_keys(const Attention& call, const RoundedOperands& from,
                                          const Place& place, int first,
                                          AttendTiles<channels>& tiles) {
  each_thread<ATTEND_THREADS>([&](int thread) {
    for (int i = thread; i < KEY_TILE * from.words; i += ATTEND_THREADS) {
      const int key = i / from.words, word = i % from.words;
      const bool there = first + key < call.keys;
      const int64_t vector = place.kv_head * call.keys + first + key;
      tiles.k[key][word] = there ? from.k[vector * from.words + word] : 0;
      if (word == 0) tiles.k_scales[key] = there ? from.k_scales[vector] : 0;
    }
  });
}

template <int channels>
__device__ __forceinline__ void load_values(const Attention& call, const RoundedOperands& from,
                                            const Place& place, int first,
                                            AttendTiles<channels>& tiles) {
  each_thread<ATTEND_THREADS>([&](int thread) {
    for (int i = thread; i < KEY_QUADS * channels; i += ATTEND_THREADS) {
      const int quad = first / QUAD + i % KEY_QUADS, channel = i / KEY_QUADS;
      const bool there = quad < from.quads && channel < call.width;
      const int64_t word = (place.kv_head * call.width + channel) * from.quads + quad;
      tiles.v[channel][i % KEY_QUADS] = there ? from.v[word] : 0;
    }
  });
}

// Of one thread, with the keys from `first` on.
template <int channels>
__device__ __forceinline__ Scores scores_of(const Attention& call, const RoundedOperands& from,
                                            const Place& place, const bool* visible, int first,
                                            const AttendTiles<channels>& tiles, int thread) {
  const int row = row_of(thread), left = thread % STRIDE;
  int sums[SIDE][KEYS_EACH] = {};
  for (int word = 0; word < from.words; ++word) {
    DQX_UNROLL
    for (int r = 0; r < SIDE; ++r) {
      DQX_UNROLL
      for (int n = 0; n < KEYS_EACH; ++n) {
        sums[r][n] =
            __dp4a(tiles.q[row + r][word], tiles.k[left + n * STRIDE][word], sums[r][n]);
      }
    }
  }
  const float shrink = 1 / sqrtf(static_cast<float>(call.width));
  Scores scores;
  DQX_UNROLL
  for (int r = 0; r < SIDE; ++r) {
    const float factor = tiles.q_scales[row + r] * shrink;
    DQX_UNROLL
    for (int n = 0; n < KEYS_EACH; ++n) {
      const int key = first + left + n * STRIDE;
      const bool there = row + r < place.queries && key < call.keys;
      const bool seen = there && visible[(place.query + row + r) * call.keys + key];
      const auto sum = static_cast<float>(sums[r][n]);
      scores.at[r][n] = seen ? sum * tiles.k_scales[left + n * STRIDE] * factor : NEVER;
    }
  }
  return scores;
}

// Adds exp(score) of a thread's keys, all relative to the largest score so far. Hidden keys count,
// as exp(NEVER - NEVER) where a query sees none: that makes all of them equal. What is not a number
// makes the sum none, and is never the largest.
__device__ __forceinline__ void add_exponentials(const Scores& scores, int keys, int thread,
                                                 Softmax& softmax) {
  DQX_UNROLL
  for (int r = 0; r < SIDE; ++r) {
    float most = softmax.most[r];
    DQX_UNROLL
    for (int n = 0; n < KEYS_EACH; ++n) most = fmaxf(most, scores.at[r][n]);
    float total = softmax.total[r] * expf(softmax.most[r] - most);
    DQX_UNROLL
    for (int n = 0; n < KEYS_EACH; ++n) {
      if (thread % STRIDE + n * STRIDE < keys) total += expf(scores.at[r][n] - most);
    }
    softmax.most[r] = most;
    softmax.total[r] = total;
  }
}

// Joins what the threads of a query have found: tiles.most[…][0] is the largest score then, and
// tiles.total[…][0] the sum.
template <int channels>
__device__ __forceinline__ void join(PerThread<Softmax, ATTEND_THREADS>& softmax,
                                     AttendTiles<channels>& tiles) {
  each_thread<ATTEND_THREADS>([&](int thread) {
    DQX_UNROLL
    for (int r = 0; r < SIDE; ++r) {
      tiles.most[row_of(thread) + r][thread % STRIDE] = softmax[thread].most[r];
      tiles.total[row_of(thread) + r][thread % STRIDE] = softmax[thread].total[r];
    }
  });
  each_thread<ATTEND_THREADS>([&](int thread) {
    if (thread >= QUERY_TILE) return;
    float most = NEVER, total = 0;
    for (const float each : tiles.most[thread]) most = fmaxf(most, each);
    for (int i = 0; i < STRIDE; ++i) {
      total += tiles.total[thread][i] * expf(tiles.most[thread][i] - most);
    }
    tiles.most[thread][0] = most;
    tiles.total[thread][0] = total;
  });
}

// Probabilities of a thread's keys in steps of 1 / p_top.
template <int channels>
__device__ __forceinline__ void round_probabilities(const Scores& scores, int keys, int p_top,
                                                    int thread, AttendTiles<channels>& tiles) {
  const auto top = static_cast<float>(p_top);
  DQX_UNROLL
  for (int r = 0; r < SIDE; ++r) {
    const int row = row_of(thread) + r;
    auto* codes = reinterpret_cast<uint8_t*>(tiles.p[row]);
    const float scale = top / tiles.total[row][0];
    DQX_UNROLL
    for (int n = 0; n < KEYS_EACH; ++n) {
      const int key = thread % STRIDE + n * STRIDE;
      const float code = rintf(expf(scores.at[r][n] - tiles.most[row][0]) * scale);
      // a code that is not a number becomes 0; the sum remembers it
      codes[key] = key < keys ? static_cast<uint8_t>(fminf(fmaxf(code, 0), top)) : 0;
    }
  }
}

template <int channels>
__device__ __forceinline__ void add_values(const AttendTiles<channels>& tiles, int thread,
                                           Products<channels>& products) {
  for (int quad = 0; quad < KEY_QUADS; ++quad) {
    DQX_UNROLL
    for (int r = 0; r < SIDE; ++r) {
      const unsigned p = tiles.p[row_of(thread) + r][quad];
      products.codes[r] = __dp4a(p, 0x01010101u, products.codes[r]);
      DQX_UNROLL
      for (int n = 0; n < channels / STRIDE; ++n) {
        unsigned& sum = products.at[r][n];
        sum = __dp4a(p, tiles.v[thread % STRIDE + n * STRIDE][quad], sum);
      }
    }
  }
}

__device__ __forceinline__ void store(float* to, float value) { *to = value; }
__device__ __forceinline__ void store(Half* to, float value) { *to = half_of(value); }

// Sums of products of codes to y. (A sum of integers, exact, until both steps are multiplied in.)
template <class T, int channels>
__device__ __forceinline__ void finish(const Attention& call, const Place& place, const T* v_scale,
                                       const T* v_zero, const AttendTiles<channels>& tiles,
                                       int thread, const Products<channels>& products, T* y) {
  const float step = 1 / static_cast<float>(call.p_top);
  DQX_UNROLL
  for (int r = 0; r < SIDE; ++r) {
    const int row = row_of(thread) + r;
    if (row >= place.queries) return;
    const int64_t vector = (place.query + row) * call.heads + place.head;
    const float total = tiles.total[row][0], none = total - total;  // 0, or not a number
    DQX_UNROLL
    for (int n = 0; n < channels / STRIDE; ++n) {
      const int channel = thread % STRIDE + n * STRIDE;
      if (channel >= call.width) break;
      const int64_t of_values = place.kv_head % call.kv_heads * call.width + channel;
      const int zero = static_cast<int>(widened(v_zero[of_values]));
      const int sum = static_cast<int>(products.at[r][n]) -
                      zero * static_cast<int>(products.codes[r]);
      const float value = static_cast<float>(sum) * step * widened(v_scale[of_values]);
      store(y + vector * call.width + channel, value + none);
    }
  }
}

// `channels`: those of a head, or more.
template <class T, int channels>
__global__ void __launch_bounds__(ATTEND_THREADS, 3)
    attend(Attention call, RoundedOperands from, const bool* visible, const T* v_scale,
           const T* v_zero, T* y) {
  __shared__ AttendTiles<channels> tiles;
  const Place place = place_of_block<QUERY_TILE>(call);
  PerThread<Softmax, ATTEND_THREADS> softmax;
  PerThread<Products<channels>, ATTEND_THREADS> products;
  load_queries(call, from, place, tiles);
  each_thread<ATTEND_THREADS>([&](int thread) {
    softmax[thread] = {{NEVER, NEVER, NEVER, NEVER}, {}};
    products[thread] = {};
  });
  for (int first = 0; first < call.keys; first += KEY_TILE) {
    load_keys(call, from, place, first, tiles);
    each_thread<ATTEND_THREADS>([&](int thread) {
      const Scores scores = scores_of(call, from, place, visible, first, tiles, thread);
      add_exponentials(scores, call.keys - first, thread, softmax[thread]);
    });
  }
  join(softmax, tiles);
  for (int first = 0; first < call.keys; first += KEY_TILE) {
    load_keys(call, from, place, first, tiles);
    load_values(call, from, place, first, tiles);
    each_thread<ATTEND_THREADS>([&](int thread) {
      const Scores scores = scores_of(call, from, place, visible, first, tiles, thread);
      round_probabilities(scores, call.keys - first, call.p_top, thread, tiles);
    });
    each_thread<ATTEND_THREADS>(
        [&](int thread) { add_values(tiles, thread, products[thread]); });
  }
  each_thread<ATTEND_THREADS>([&](int thread) {
    finish(call, place, v_scale, v_zero, tiles, thread, products[thread], y);
  });
}

}  // namespace
}  // namespace dqx
