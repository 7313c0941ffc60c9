// What becomes of scores on tensor cores: their largest, sums of exponentials, codes of
// probabilities. A thread has two queries, and 16 keys of a tile; four threads share a query.
//
// Sums of scores begin with a number that makes them the bits of a float: 3 · 2^22 and the sum,
// which stays below 2^22, exactly. What the last step of both passes computes of a sum has the
// same bits, so that no exponent is above 0.
#pragma once

#include "belt.cuh"

namespace dqx {
namespace {

constexpr int SUM_START = 0x4b400000;  // of a float, 3 · 2^22
constexpr float SUM_OFFSET = 0x1.8p23f, CODE_OFFSET = 0x1p23f;

#ifdef DQX_ON_CPU
inline float power_of_two(float x) { return exp2f(x); }
#else
// Within 2 units in the last place; 0 below 2^-126.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

// Sums of products of a thread's queries, lane / 4 and 8 more, with its keys.
struct ScoreSums {
  Quad at[KEY_MMAS];
};

// What a thread knows of its two queries.
struct QueryState {
  float factor[2];     // of sums times scales of keys, to scores in base 2
  float most[2];       // the largest sum times scale
  float total[2];      // of exponentials
  float scale[2];      // of exponentials, to codes
  uint32_t seen[2];    // not 0: it sees a key, or is none of the queries
  unsigned hidden[2];  // the code of what it does not see, four times: not 0 if it sees nothing
  unsigned codes[2];   // their sum
  bool busy;           // the warp works on this tile
};

template <class Tile>
__device__ __forceinline__ int query_of(int thread, int r) {
  return thread / 32 * 16 + r * 8 + thread % 32 / 4;
}

// Sums times scales of keys: what both passes compute from the same sums, and to the same bits.
struct ScaledSums {
  float at[2][GROUPS][MINE];
};

__device__ __forceinline__ ScaledSums scaled(const ScoreSums& sums, const KeyScales* k_scales,
                                             int thread) {
  ScaledSums values;
  DQX_UNROLL
  for (int group = 0; group < GROUPS; ++group) {
    const KeyScales scales = k_scales[group * (CHUNK / MINE) + thread % 4];
    DQX_UNROLL
    for (int i = 0; i < MINE; ++i) {
      DQX_UNROLL
      for (int r = 0; r < 2; ++r) {
        const int bits = sums.at[2 * group + i / 2].word[2 * r + i % 2];
        values.at[r][group][i] = __fmul_rn(__int_as_float(bits) - SUM_OFFSET, scales.of[i]);
      }
    }
  }
  return values;
}

// Of a thread's keys in a group, in the lowest bits: who is seen.
__device__ __forceinline__ uint32_t seen_of_group(const Seen& seen, int group, int thread) {
  return seen.word[group / 2] >> (thread % 4 * MINE) >> group % 2 * CHUNK;
}

// Adds the exponentials of a tile's scores, all relative to the largest score so far. What is not a
// number makes the sum none, and is never the largest.
template <class Tile>
__device__ __forceinline__ void add_exponentials(ScaledSums values,
                                                 const typename Tile::Slot& slot, int thread,
                                                 QueryState& state) {
  DQX_UNROLL
  for (int r = 0; r < 2; ++r) {
    const Seen seen = slot.seen[query_of<Tile>(thread, r)];
    state.seen[r] |= seen.word[0] | seen.word[1];
    float most = state.most[r], total = 0;
    DQX_UNROLL
    for (int n = 0; n < GROUPS * MINE; ++n) {
      float& value = values.at[r][n / MINE][n % MINE];
      if (!(seen_of_group(seen, n / MINE, thread) >> n % MINE & 1)) value = -INFINITY;
      most = fmaxf(most, value);
    }
    DQX_UNROLL
    for (int n = 0; n < GROUPS * MINE; ++n) {
      total += power_of_two((values.at[r][n / MINE][n % MINE] - most) * state.factor[r]);
    }
    state.total[r] =
        state.total[r] * power_of_two((state.most[r] - most) * state.factor[r]) + total;
    state.most[r] = most;
  }
}

// What the four threads of a query make of their `of(thread)` together.
template <int threads, class T, class Of, class Join>
__device__ __forceinline__ void join_row(int warp, const Of& of, const Join& join) {
  PerThread<T, threads> mine, others;
  DQX_UNROLL
  for (int mask = 1; mask <= 2; mask *= 2) {
    each_lane(warp, [&](int thread) { mine[thread] = of(thread); });
    exchange(warp, mask, mine, others);
    each_lane(warp, [&](int thread) { of(thread) = join(of(thread), others[thread]); });
  }
}

// Ends pass one. A query that sees nothing sees all keys alike.
template <class Tile>
__device__ __forceinline__ void join_exponentials(int warp, const Attention& call,
                                                  PerThread<QueryState, Tile::threads>& states) {
  DQX_UNROLL
  for (int r = 0; r < 2; ++r) {
    PerThread<float, Tile::threads> most;
    each_lane(warp, [&](int thread) { most[thread] = states[thread].most[r]; });
    join_row<Tile::threads, float>(
        warp, [&](int thread) -> float& { return states[thread].most[r]; },
        [](float a, float b) { return fmaxf(a, b); });
    each_lane(warp, [&](int thread) {
      QueryState& state = states[thread];
      state.total[r] *= power_of_two((most[thread] - state.most[r]) * state.factor[r]);
    });
    join_row<Tile::threads, float>(
        warp, [&](int thread) -> float& { return states[thread].total[r]; },
        [](float a, float b) { return a + b; });
    each_lane(warp, [&](int thread) {
      QueryState& state = states[thread];
      if (!state.seen[r]) state.total[r] = static_cast<float>(call.keys);
      state.scale[r] = static_cast<float>(call.p_top) / state.total[r];
      if (state.seen[r]) return;
      state.hidden[r] = static_cast<unsigned>(rintf(state.scale[r])) * 0x01010101u;
    });
  }
}

// Codes of probabilities of a thread's keys in a group, four in a word.
__device__ __forceinline__ unsigned codes_of_group(const float (&values)[MINE], uint32_t seen,
                                                   const QueryState& state, int r) {
  unsigned code[MINE];
  DQX_UNROLL
  for (int i = 0; i < MINE; ++i) {
    const float p = power_of_two((values[i] - state.most[r]) * state.factor[r]);
    code[i] = __float_as_uint(p * state.scale[r] + CODE_OFFSET);  // in the last byte
  }
  const unsigned low = __byte_perm(code[0], code[1], 0x0040);
  const unsigned word = __byte_perm(low, __byte_perm(code[2], code[3], 0x0040), 0x5410);
  const unsigned mask = ((seen & 15) * 0x00204081u & 0x01010101u) * 255u;
  return (word & mask) | (state.hidden[r] & ~mask);
}

template <class Tile>
__device__ __forceinline__ void round_probabilities(
    const ScaledSums& values, const typename Tile::Slot& slot, int thread, QueryState& state,
    PerThread<Quad, Tile::threads> (&p)[KEY_TILE / SLICE]) {
  DQX_UNROLL
  for (int r = 0; r < 2; ++r) {
    const Seen seen = slot.seen[query_of<Tile>(thread, r)];
    DQX_UNROLL
    for (int group = 0; group < GROUPS; ++group) {
      const unsigned word = codes_of_group(
          values.at[r][group], seen_of_group(seen, group, thread), state, r);
      p[group / 2][thread].word[group % 2 * 2 + r] = static_cast<int>(word);
      state.codes[r] = __dp4a(word, 0x01010101u, state.codes[r]);
    }
  }
}

// Ends pass two: the sums of codes, each query's own.
template <class Tile>
__device__ __forceinline__ void join_codes(int warp, const Attention& call,
                                           PerThread<QueryState, Tile::threads>& states) {
  DQX_UNROLL
  for (int r = 0; r < 2; ++r) {
    join_row<Tile::threads, unsigned>(
        warp, [&](int thread) -> unsigned& { return states[thread].codes[r]; },
        [](unsigned a, unsigned b) { return a + b; });
    each_lane(warp, [&](int thread) {
      QueryState& state = states[thread];  // has counted codes of keys behind the last one
      if (!state.hidden[r]) return;
      state.codes[r] = static_cast<unsigned>(call.keys) * (state.hidden[r] & 255);
    });
  }
}

}  // namespace
}  // namespace dqx
