// Attention on codes for heads of any width, on `dp4a`.
//
// A block has 32 rows of one key head and goes over its tiles twice: for the largest score, and for
// probabilities and their products. A thread has 4 rows, and every 16th key or channel.
#pragma once

#include "rows.cuh"

namespace dqx {
namespace {

constexpr int PLAIN_ROWS = 32, KEY_TILE = SEEN_KEYS, SIDE = 4, STRIDE = 16;
constexpr int PLAIN_THREADS = PLAIN_ROWS / SIDE * STRIDE;
constexpr int KEYS_EACH = KEY_TILE / STRIDE, QUAD = 4, KEY_QUADS = KEY_TILE / QUAD;
constexpr int VALUE_KEYS = 16;  // whose values are floats in shared memory at a time

// One more word than a vector has keeps threads that read one word of many vectors off each other's
// banks of memory.
template <int channels, bool halves>
struct PlainTiles {
  int q[PLAIN_ROWS][channels / 4 + 1];
  int k[KEY_TILE][channels / 4 + 1];
  unsigned v[channels][KEY_QUADS + 1];  // codes from 0 on
  unsigned p[PLAIN_ROWS][KEY_QUADS];
  float q_scales[PLAIN_ROWS], k_scales[KEY_TILE];
  uint32_t seen[PLAIN_ROWS][2];
  float largest[PLAIN_ROWS][STRIDE];
};
template <int channels>
struct PlainTiles<channels, true> {
  int q[PLAIN_ROWS][channels / 4 + 1];
  union {  // values come when scores are known
    int k[KEY_TILE][channels / 4 + 1];
    float v[VALUE_KEYS][channels];
  };
  float p[PLAIN_ROWS][KEY_TILE];
  float q_scales[PLAIN_ROWS], k_scales[KEY_TILE];
  uint32_t seen[PLAIN_ROWS][2];
  float largest[PLAIN_ROWS][STRIDE];
};

// A thread's products: integers, or floats.
template <int channels, bool halves>
struct PlainSums {
  using T = std::conditional_t<halves, float, unsigned>;
  T at[SIDE][channels / STRIDE];
  T total[SIDE];
};

struct Scores {
  float at[SIDE][KEYS_EACH];
};

struct Largest {
  float at[SIDE];
};

__device__ __forceinline__ int first_row(int thread) { return thread / STRIDE * SIDE; }

// A code of a vector of `bits` a code, as it is in memory: with 4 bits from 0 to 15.
__device__ __forceinline__ int code_in(const int8_t* vector, int bits, int width, int channel) {
  if (bits == 8) return vector[channel];
  const int half = width / 2;
  const auto byte = static_cast<uint8_t>(vector[channel % half]);
  return channel < half ? byte & 15 : byte >> 4;
}

__device__ __forceinline__ unsigned of_bytes(const int (&bytes)[4]) {
  unsigned word = 0;
  DQX_UNROLL
  for (int i = 0; i < 4; ++i) word |= (static_cast<unsigned>(bytes[i]) & 255u) << 8 * i;
  return word;
}

template <class Tiles>
__device__ __forceinline__ void load_queries(const Attend& call, const AttendOperands& from,
                                             const Place& place, Tiles& tiles) {
  const int words = (call.width + 3) / 4;
  each_thread<PLAIN_THREADS>([&](int thread) {
    for (int i = thread; i < PLAIN_ROWS * words; i += PLAIN_THREADS) {
      const int row = i / words, word = i % words;
      const bool there = row < place.rows;
      const int64_t vector = there ? vector_of_row(call, place, row) : 0;
      tiles.q[row][word] = there ? reinterpret_cast<const int*>(from.q)[vector * words + word] : 0;
      if (word == 0) tiles.q_scales[row] = there ? from.q_scales[vector] : 0;
    }
  });
}

template <class Tiles>
__device__ __forceinline__ void load_keys(const Attend& call, const AttendOperands& from,
                                          const Place& place, int tile, Tiles& tiles) {
  const int words = (call.width + 3) / 4, bytes = call.width * call.k_bits / 8;
  each_thread<PLAIN_THREADS>([&](int thread) {
    for (int i = thread; i < KEY_TILE * words; i += PLAIN_THREADS) {
      const int row = i / words, word = i % words, key = tile * KEY_TILE + row;
      const int64_t vector = place.kv_head * call.keys + key;
      int codes[4] = {};
      DQX_UNROLL
      for (int n = 0; n < 4; ++n) {
        if (key >= call.keys || word * 4 + n >= call.width) continue;
        codes[n] = code_in(from.k + vector * bytes, call.k_bits, call.width, word * 4 + n) -
                   (call.k_bits == 4 ? 8 : 0);
      }
      tiles.k[row][word] = static_cast<int>(of_bytes(codes));
      if (word == 0) tiles.k_scales[row] = key < call.keys ? from.k_scales[vector] : 0;
    }
    const int word = thread % 2, count = (call.keys + SEEN_KEYS - 1) / SEEN_KEYS;
    if (thread >= 2 * PLAIN_ROWS) return;
    const int row = thread / 2;
    const int64_t query = place.sequence * call.queries + query_of(place, row);
    tiles.seen[row][word] = row < place.rows ? from.seen[query * count + tile].word[word] : 0;
  });
}

// Codes of values, four keys in a word.
template <class Tiles>
__device__ __forceinline__ void load_codes(const Attend& call, const AttendOperands& from,
                                           const Place& place, int tile, Tiles& tiles) {
  const int bytes = call.width * call.v_bits / 8;
  each_thread<PLAIN_THREADS>([&](int thread) {
    for (int i = thread; i < KEY_QUADS * call.width; i += PLAIN_THREADS) {
      const int quad = i / call.width, channel = i % call.width;
      const int first = tile * KEY_TILE + quad * QUAD;
      const auto* vectors =
          static_cast<const int8_t*>(from.v) + (place.kv_head * call.keys + first) * bytes;
      int codes[4] = {};
      DQX_UNROLL
      for (int n = 0; n < QUAD; ++n) {
        if (first + n >= call.keys) break;
        codes[n] = code_in(vectors + n * bytes, call.v_bits, call.width, channel) +
                   (call.v_bits == 8 ? 128 : 0);
      }
      tiles.v[channel][quad] = of_bytes(codes);
    }
  });
}

// Values of VALUE_KEYS keys, 0 where nobody sees them, or they are not finite: nobody may have
// written them, and a query that sees nothing takes all keys alike.
template <class Tiles>
__device__ __forceinline__ void load_floats(const Attend& call, const AttendOperands& from,
                                            const Place& place, const Stop& stop, int first,
                                            Tiles& tiles) {
  each_thread<PLAIN_THREADS>([&](int thread) {
    for (int i = thread; i < VALUE_KEYS * call.width; i += PLAIN_THREADS) {
      const int row = i / call.width, channel = i % call.width, in_tile = first + row;
      const int key = stop.tile * KEY_TILE + in_tile;
      const uint32_t any = in_tile < 32 ? stop.any.word[0] : stop.any.word[1];
      const bool there = key < call.keys && (any >> in_tile % 32 & 1);
      const int64_t place_of_value = (place.kv_head * call.keys + key) * call.width + channel;
      const float value = there ? value_at(from.v, call.v_type, place_of_value) : 0;
      tiles.v[row][channel] = value - value == 0 ? value : 0;
    }
  });
}

// Of one thread; -inf where a row does not see a key.
template <class Tiles>
__device__ __forceinline__ Scores scores_of(const Attend& call, const Tiles& tiles, int thread) {
  const int row = first_row(thread), left = thread % STRIDE, words = (call.width + 3) / 4;
  int sums[SIDE][KEYS_EACH] = {};
  for (int word = 0; word < words; ++word) {
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
      const int key = left + n * STRIDE;
      const bool seen = tiles.seen[row + r][key / 32] >> key % 32 & 1;
      const float score = static_cast<float>(sums[r][n]) * tiles.k_scales[key] * factor;
      scores.at[r][n] = seen ? score : -INFINITY;
    }
  }
  return scores;
}

// Joins what the threads of a row have found: tiles.largest[…][0] is the largest score then.
template <class Tiles>
__device__ __forceinline__ void join(PerThread<Largest, PLAIN_THREADS>& largest, Tiles& tiles) {
  each_thread<PLAIN_THREADS>([&](int thread) {
    DQX_UNROLL
    for (int r = 0; r < SIDE; ++r) {
      tiles.largest[first_row(thread) + r][thread % STRIDE] = largest[thread].at[r];
    }
  });
  each_thread<PLAIN_THREADS>([&](int thread) {
    if (thread >= PLAIN_ROWS) return;
    float most = -INFINITY;
    for (const float each : tiles.largest[thread]) most = larger(most, each);
    tiles.largest[thread][0] = most;
  });
}

// exp of a score less the row's largest; of a row that sees nothing 1 for all `left` keys. What is
// not a number is 0: `largest` remembers it.
__device__ __forceinline__ float exponential(float score, float largest, int key, int left) {
  if (largest == -INFINITY) return key < left ? 1 : 0;
  return fmaxf(score == -INFINITY ? 0 : expf(score - largest), 0);
}

template <int channels>
__device__ __forceinline__ void add_products(const Attend& call, const AttendOperands& from,
                                             const Place& place, const Stop& stop,
                                             PlainTiles<channels, false>& tiles,
                                             PerThread<PlainSums<channels, false>, PLAIN_THREADS>&
                                                 sums) {
  load_codes(call, from, place, stop.tile, tiles);
  each_thread<PLAIN_THREADS>([&](int thread) {
    for (int quad = 0; quad < KEY_QUADS; ++quad) {
      DQX_UNROLL
      for (int r = 0; r < SIDE; ++r) {
        const unsigned p = tiles.p[first_row(thread) + r][quad];
        sums[thread].total[r] = __dp4a(p, 0x01010101u, sums[thread].total[r]);
        DQX_UNROLL
        for (int n = 0; n < channels / STRIDE; ++n) {
          const int channel = thread % STRIDE + n * STRIDE;
          if (channel >= call.width) break;
          unsigned& sum = sums[thread].at[r][n];
          sum = __dp4a(p, tiles.v[channel][quad], sum);
        }
      }
    }
  });
}

template <int channels>
__device__ __forceinline__ void add_products(const Attend& call, const AttendOperands& from,
                                             const Place& place, const Stop& stop,
                                             PlainTiles<channels, true>& tiles,
                                             PerThread<PlainSums<channels, true>, PLAIN_THREADS>&
                                                 sums) {
  for (int first = 0; first < KEY_TILE; first += VALUE_KEYS) {
    load_floats(call, from, place, stop, first, tiles);
    each_thread<PLAIN_THREADS>([&](int thread) {
      for (int key = 0; key < VALUE_KEYS; ++key) {
        DQX_UNROLL
        for (int r = 0; r < SIDE; ++r) {
          const float p = tiles.p[first_row(thread) + r][first + key];
          sums[thread].total[r] += p;
          DQX_UNROLL
          for (int n = 0; n < channels / STRIDE; ++n) {
            const int channel = thread % STRIDE + n * STRIDE;
            if (channel < call.width) sums[thread].at[r][n] += p * tiles.v[key][channel];
          }
        }
      }
    });
  }
}

// As tensor cores have them.
__device__ __forceinline__ int total_of(unsigned total) { return static_cast<int>(total); }
__device__ __forceinline__ float total_of(float total) { return total; }
__device__ __forceinline__ int sum_of(const Attend& call, unsigned sum, unsigned total) {
  return static_cast<int>(call.v_bits == 8 ? sum - 128 * total : sum);
}
__device__ __forceinline__ float sum_of(const Attend&, float sum, float) { return sum; }

// `channels`: those of a head, or more.
template <int channels, bool halves>
__global__ void __launch_bounds__(PLAIN_THREADS, 2)
    attend_on_dp4a(Attend call, AttendOperands given, AttendRoom room) {
  __shared__ PlainTiles<channels, halves> tiles;
  const Place place = place_of_block<PLAIN_ROWS>(call);
  const Stops stops = stops_of_block(call, room, place);
  PerThread<Largest, PLAIN_THREADS> largest;
  PerThread<PlainSums<channels, halves>, PLAIN_THREADS> sums;
  load_queries(call, given, place, tiles);
  each_thread<PLAIN_THREADS>([&](int thread) {
    sums[thread] = {};
    DQX_UNROLL
    for (int r = 0; r < SIDE; ++r) largest[thread].at[r] = -INFINITY;
  });
  for (int stop = 0; stop < stops.count; ++stop) {
    load_keys(call, given, place, room.stops[stops.first + stop].tile, tiles);
    each_thread<PLAIN_THREADS>([&](int thread) {
      const Scores scores = scores_of(call, tiles, thread);
      DQX_UNROLL
      for (int r = 0; r < SIDE; ++r) {
        DQX_UNROLL
        for (int n = 0; n < KEYS_EACH; ++n) {
          largest[thread].at[r] = larger(largest[thread].at[r], scores.at[r][n]);
        }
      }
    });
  }
  join(largest, tiles);
  for (int stop = 0; stop < stops.count; ++stop) {
    const Stop at = room.stops[stops.first + stop];
    load_keys(call, given, place, at.tile, tiles);
    each_thread<PLAIN_THREADS>([&](int thread) {
      const Scores scores = scores_of(call, tiles, thread);
      const int left = call.keys - at.tile * KEY_TILE;
      DQX_UNROLL
      for (int r = 0; r < SIDE; ++r) {
        const int row = first_row(thread) + r;
        DQX_UNROLL
        for (int n = 0; n < KEYS_EACH; ++n) {
          const int key = thread % STRIDE + n * STRIDE;
          const float p = exponential(scores.at[r][n], tiles.largest[row][0], key, left);
          if constexpr (halves) {
            tiles.p[row][key] = p;
          } else {
            const float code = rintf(p * static_cast<float>(call.p_top));
            reinterpret_cast<uint8_t*>(tiles.p[row])[key] = static_cast<uint8_t>(code);
          }
        }
      }
    });
    add_products(call, given, place, at, tiles, sums);
  }
  each_thread<PLAIN_THREADS>([&](int thread) {
    DQX_UNROLL
    for (int r = 0; r < SIDE; ++r) {
      const int row = first_row(thread) + r;
      if (row >= place.rows) return;
      const RowEnd end = row_end(call, tiles.largest[row][0], total_of(sums[thread].total[r]));
      const int64_t first = vector_of_row(call, place, row) * call.width;
      DQX_UNROLL
      for (int n = 0; n < channels / STRIDE; ++n) {
        const int channel = thread % STRIDE + n * STRIDE;
        if (channel >= call.width) break;
        const int64_t of_values = int64_t{place.head} * call.width + channel;
        const float y = result(call, given, end, of_values,
                               sum_of(call, sums[thread].at[r][n], sums[thread].total[r]));
        if (call.type == Float::fp16) {
          store(static_cast<Half*>(given.y) + first + channel, y);
        } else {
          store(static_cast<float*>(given.y) + first + channel, y);
        }
      }
    }
  });
}

}  // namespace
}  // namespace dqx
