// What becomes of scores on tensor cores: their largest, then probabilities relative to it. A
// thread has two rows, and 4 keys of each 16 of a tile; four threads share a row.
//
// Sums of scores begin with a number that makes them the bits of a float: 3 · 2^22 and the sum,
// which stays below 2^22, exactly. Both kernels compute the same of a sum, to the same bits, so
// that no exponent is above 0.
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

constexpr int PART = 32, PART_GROUPS = PART / GROUP;  // keys whose scores are in registers at a time

// Sums of products of a thread's rows, lane / 4 and 8 more, with its keys.
struct ScoreSums {
  Quad at[PART / 8];
};

// What a thread knows of its two rows.
struct RowState {
  float factor[2];   // of sums times scales of keys, to scores in base 2
  float largest[2];  // sum times scale; -inf: it sees nothing
  bool busy;         // the warp works on this tile
};

__device__ __forceinline__ int row_of(int thread, int r) {
  return thread / 32 * 16 + r * 8 + thread % 32 / 4;
}

// Sums times scales of keys: what both kernels compute from the same sums, and to the same bits.
struct ScaledSums {
  float at[2][PART_GROUPS][MINE];
};

// `k_scales`: of the part's keys.
__device__ __forceinline__ ScaledSums scaled(const ScoreSums& sums, const KeyScales* k_scales,
                                             int thread) {
  ScaledSums values;
  DQX_UNROLL
  for (int group = 0; group < PART_GROUPS; ++group) {
    const KeyScales scales = k_scales[group * (GROUP / MINE) + thread % 4];
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

// Of a thread's keys in a group of a part, in the lowest bits: who is seen.
template <class Tile>
__device__ __forceinline__ uint32_t seen_of_group(const typename Tile::Slot& slot, int part,
                                                  int thread, int r, int group) {
  return slot.seen[row_of(thread, r)][part] >> (thread % 4 * MINE) >> group * GROUP;
}

// The largest of a part's scores, too. What is not a number is larger than all.
template <class Tile>
__device__ __forceinline__ void find_largest_of(const ScaledSums& values,
                                                const typename Tile::Slot& slot, int part,
                                                int thread, RowState& state) {
  DQX_UNROLL
  for (int r = 0; r < 2; ++r) {
    DQX_UNROLL
    for (int group = 0; group < PART_GROUPS; ++group) {
      const uint32_t seen = seen_of_group<Tile>(slot, part, thread, r, group);
      DQX_UNROLL
      for (int i = 0; i < MINE; ++i) {
        const float value = seen >> i & 1 ? values.at[r][group][i] : -INFINITY;
        state.largest[r] = larger(state.largest[r], value);
      }
    }
  }
}

// Probabilities as the tensor cores take them: codes of 32 keys in a Quad, or halves of 16.
template <class Tile>
struct Probabilities {
  static constexpr int count = Tile::halves ? Tile::groups : Tile::groups / 2;
  PerThread<Quad, ATTEND_THREADS> at[count];
};

// exp of a thread's scores in a group.
__device__ __forceinline__ void exponentials(const float (&values)[MINE], const RowState& state,
                                             int r, float (&found)[MINE]) {
  DQX_UNROLL
  for (int i = 0; i < MINE; ++i) {
    found[i] = power_of_two((values[i] - state.largest[r]) * state.factor[r]);
  }
}

// Codes of four exponentials, in a word: the last byte of a float of 2^23 and more.
__device__ __forceinline__ unsigned codes_of(const float (&p)[MINE], float top, uint32_t seen,
                                             unsigned unseen) {
  unsigned code[MINE];
  DQX_UNROLL
  for (int i = 0; i < MINE; ++i) code[i] = __float_as_uint(p[i] * top + CODE_OFFSET);
  const unsigned low = __byte_perm(code[0], code[1], 0x0040);
  const unsigned word = __byte_perm(low, __byte_perm(code[2], code[3], 0x0040), 0x5410);
  const unsigned mask = ((seen & 15) * 0x00204081u & 0x01010101u) * 255u;
  return (word & mask) | (unseen & ~mask);
}

__device__ __forceinline__ unsigned masked_halves(float low, float high, uint32_t seen,
                                                  unsigned unseen) {
  const unsigned mask = ((seen & 1) | (seen & 2) << 15) * 0xffffu;
  return (halves_of(low, high) & mask) | (unseen & ~mask);
}

// A row that sees nothing takes all keys alike: `all` is a word of largest probabilities.
template <class Tile, int part>
__device__ __forceinline__ void find_probabilities(const ScaledSums& values,
                                                   const typename Tile::Slot& slot, float top,
                                                   unsigned all, int thread,
                                                   const RowState& state,
                                                   Probabilities<Tile>& p) {
  DQX_UNROLL
  for (int r = 0; r < 2; ++r) {
    const unsigned unseen = state.largest[r] == -INFINITY ? all : 0;
    DQX_UNROLL
    for (int group = 0; group < PART_GROUPS; ++group) {
      const uint32_t seen = seen_of_group<Tile>(slot, part, thread, r, group);
      float found[MINE];
      exponentials(values.at[r][group], state, r, found);
      if constexpr (Tile::halves) {
        int(&word)[4] = p.at[part * PART_GROUPS + group][thread].word;
        word[r] = static_cast<int>(masked_halves(found[0], found[1], seen, unseen));
        word[2 + r] = static_cast<int>(masked_halves(found[2], found[3], seen >> 2, unseen));
      } else {
        p.at[part][thread].word[group * 2 + r] =
            static_cast<int>(codes_of(found, top, seen, unseen));
      }
    }
  }
}

}  // namespace
}  // namespace dqx
