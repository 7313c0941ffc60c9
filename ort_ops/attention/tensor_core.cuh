// Attention on the integer tensor cores of SM 80 and later (mma.sync m16n8k32), in two kernels:
// probabilities are rounded relative to a row's largest score, so that is found first, of all
// keys; then come scores again, probabilities, and their products with values.
//
// A warp has 16 rows of one key head, a block 64. It goes over the tiles that any of them sees, or
// over a part of these: sums of codes are exact, so that the number of parts changes nothing.
//
// What the tensor cores leave of the scores is what they take as probabilities: a thread has two
// neighbouring columns of mma tiles of 8, and wants four keys in a register. So keys stand in rows
// of shared memory where their scores come out at the right thread (`row_of_key`), values in the
// same rows. Values arrive as a cache has them, key by key. Turned by ldmatrix they leave a thread
// two channels of two keys in a register; a byte permutation of two such registers makes four keys
// of one channel, so one mma tile has the even channels of 16, another the odd ones.
#pragma once

#include "scores.cuh"

namespace dqx {
namespace {

template <int number>
using Number = std::integral_constant<int, number>;

template <class Tile, bool halves = Tile::halves>
struct Sums {  // of products with values, and of what they are multiplied by
  Quad at[Tile::value_mmas];
  Quad total;
};
template <class Tile>
struct Sums<Tile, true> {
  FloatQuad at[Tile::value_mmas];
  FloatQuad total;
};

template <class Tile>
using QueryCodes = PerThread<Quad, ATTEND_THREADS>[Tile::slices];

__device__ __forceinline__ void load_factors(const Attend& call, const AttendOperands& from,
                                             float unit, const Place& place, int thread,
                                             RowState& state) {
  state = {};
  DQX_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int row = row_of(thread, r);
    if (row < place.rows) state.factor[r] = from.q_scales[vector_of_row(call, place, row)] * unit;
  }
}

// Of all parts, -inf where a row sees nothing; 0 of what is no row.
__device__ __forceinline__ void load_largest(const AttendRoom& room, const Place& place,
                                             int thread, RowState& state) {
  DQX_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int row = row_of(thread, r);
    if (row >= place.rows) continue;
    const float* at = room.largest + place_of_row(room, place, row);
    float largest = -INFINITY;
    for (int part = 0; part < room.parts; ++part) largest = larger(largest, at[part * room.rows]);
    state.largest[r] = largest;
  }
}

// Codes of a thread's rows, as the tensor cores take them. The order of channels is that of keys:
// with two codes a byte, of 32 bytes the low ones, then the high ones.
template <class Tile>
__device__ __forceinline__ void load_query_codes(const Attend& call, const AttendOperands& from,
                                                 const Place& place, int thread,
                                                 QueryCodes<Tile>& codes) {
  const int words = call.width / 4, packed = call.k_bits == 4 ? words / 2 : words;
  DQX_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int row = row_of(thread, r);
    const bool there = row < place.rows;
    const int64_t vector = there ? vector_of_row(call, place, row) : 0;
    const auto* first = reinterpret_cast<const int*>(from.q) + vector * words;
    DQX_UNROLL
    for (int slice = 0; slice < Tile::slices; ++slice) {
      DQX_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int place_of_slice = call.k_bits == 4 ? slice / 2 : slice;
        const int high = call.k_bits == 4 ? slice % 2 : 0;
        const int word = place_of_slice * (SLICE / 4) + half * 4 + thread % 4;
        const bool kept = there && word < packed;
        codes[slice][thread].word[half * 2 + r] = kept ? first[high * packed + word] : 0;
      }
    }
  }
}

// Loads 16 rows of shared memory, `first` and on, over SLICE bytes from chunk `chunk` on.
template <int stride>
__device__ __forceinline__ void load_rows(int warp, const uint4* rows, int first, int chunk,
                                          PerThread<Quad, ATTEND_THREADS>& loaded) {
  PerThread<const void*, ATTEND_THREADS> places;
  each_lane(warp, [&](int thread) {
    const int lane = thread % 32;
    places[thread] =
        &rows[(lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 + first * stride + chunk];
  });
  load_matrices(warp, places, loaded);
}

// Of the keys of a part of a tile.
template <class Tile>
__device__ __forceinline__ void add_scores(const Attend& call, int warp,
                                           const typename Tile::Slot& slot, int part,
                                           QueryCodes<Tile>& q,
                                           PerThread<ScoreSums, ATTEND_THREADS>& sums) {
  const uint4* rows = slot.rows + part * PART * Tile::k_row;
  PerThread<Quad, ATTEND_THREADS> keys;
  const auto multiply = [&](int slice, int pair, PerThread<Quad, ATTEND_THREADS>& codes) {
    DQX_UNROLL
    for (int j = 0; j < 2; ++j) {
      multiply_add(
          warp, q[slice], [&](int thread, int half) { return codes[thread].word[2 * j + half]; },
          [&](int thread) -> Quad& { return sums[thread].at[2 * pair + j]; });
    }
  };
  each_lane(warp, [&](int thread) {
    DQX_UNROLL
    for (Quad& each : sums[thread].at) each = {{SUM_START, SUM_START, SUM_START, SUM_START}};
  });
  if (call.k_bits == 8) {
    DQX_UNROLL
    for (int slice = 0; slice < Tile::slices; ++slice) {
      DQX_UNROLL
      for (int pair = 0; pair < PART_GROUPS; ++pair) {
        load_rows<Tile::k_row>(warp, rows, pair * 16, slice * (SLICE / CHUNK), keys);
        multiply(slice, pair, keys);
      }
    }
    return;
  }
  PerThread<Quad, ATTEND_THREADS> half;  // 16 times the codes
  DQX_UNROLL
  for (int slice = 0; slice < Tile::slices; slice += 2) {
    DQX_UNROLL
    for (int pair = 0; pair < PART_GROUPS; ++pair) {
      load_rows<Tile::k_row>(warp, rows, pair * 16, slice / 2 * (SLICE / CHUNK), keys);
      DQX_UNROLL
      for (int high = 0; high < 2; ++high) {
        each_lane(warp, [&](int thread) {
          DQX_UNROLL
          for (int n = 0; n < 4; ++n) {
            const auto word = static_cast<uint32_t>(keys[thread].word[n]);
            const uint32_t code = (high ? word : word << 4) & 0xf0f0f0f0u;
            half[thread].word[n] = static_cast<int>(code ^ 0x80808080u);
          }
        });
        multiply(slice + high, pair, half);
      }
    }
  }
}

// What `work(thread, values)` does with the scores of a part of a tile.
template <class Tile, class Work>
__device__ __forceinline__ void with_scores(const Attend& call, int warp,
                                            const typename Tile::Slot& slot, int part,
                                            QueryCodes<Tile>& q, const Work& work) {
  PerThread<ScoreSums, ATTEND_THREADS> sums;
  add_scores<Tile>(call, warp, slot, part, q, sums);
  each_lane(warp, [&](int thread) {
    work(thread, scaled(sums[thread], slot.k_scales + part * (PART / MINE), thread));
  });
}

// Four registers of 32 keys by 16 bytes, turned; `rows` begins at the first key's.
template <int stride>
__device__ __forceinline__ void load_turned(int warp, const uint4* rows, int chunk,
                                            PerThread<Quad, ATTEND_THREADS>& loaded) {
  PerThread<const void*, ATTEND_THREADS> places;
  each_lane(warp, [&](int thread) { places[thread] = &rows[thread % 32 * stride + chunk]; });
  load_turned_matrices(warp, places, loaded);
}

// Products of codes. Pair n of mma tiles is of 16 channels: the even ones, then the odd ones.
template <class Tile>
__device__ __forceinline__ void add_code_products(
    const Attend& call, int warp, const typename Tile::Slot& slot, Probabilities<Tile>& p,
    PerThread<Sums<Tile>, ATTEND_THREADS>& sums) {
  PerThread<Quad, ATTEND_THREADS> loaded, turned, half;
  const auto multiply = [&](int slice, int pair, PerThread<Quad, ATTEND_THREADS>& codes) {
    DQX_UNROLL
    for (int odd = 0; odd < 2; ++odd) {
      multiply_add_mixed(
          warp, p.at[slice],
          [&](int thread, int group) { return codes[thread].word[2 * odd + group]; },
          [&](int thread) -> Quad& { return sums[thread].at[2 * pair + odd]; });
    }
  };
  const auto turn = [&](int slice, int chunk) {
    load_turned<Tile::v_row>(warp, slot.rows + slice * SLICE * Tile::v_row, chunk, loaded);
    each_lane(warp, [&](int thread) {
      DQX_UNROLL
      for (int n = 0; n < 4; ++n) {  // of even channels keys 0 … 15, 16 … 31; of odd ones
        const int group = n % 2 * 2;
        turned[thread].word[n] = static_cast<int>(__byte_perm(
            static_cast<uint32_t>(loaded[thread].word[group]),
            static_cast<uint32_t>(loaded[thread].word[group + 1]), n < 2 ? 0x6420 : 0x7531));
      }
    });
  };
  DQX_UNROLL
  for (int slice = 0; slice < Tile::keys / SLICE; ++slice) {
    multiply_add_mixed(
        warp, p.at[slice], [](int, int) { return 0x01010101; },
        [&](int thread) -> Quad& { return sums[thread].total; });
  }
  if (call.v_bits == 8) {
    DQX_UNROLL
    for (int slice = 0; slice < Tile::keys / SLICE; ++slice) {
      DQX_UNROLL
      for (int chunk = 0; chunk < Tile::channels / CHUNK; ++chunk) {
        turn(slice, chunk);
        multiply(slice, chunk, turned);
      }
    }
    return;
  }
  DQX_UNROLL
  for (int slice = 0; slice < Tile::keys / SLICE; ++slice) {
    DQX_UNROLL
    for (int chunk = 0; chunk < Tile::channels / CHUNK / 2; ++chunk) {
      turn(slice, chunk);
      DQX_UNROLL
      for (int high = 0; high < 2; ++high) {
        each_lane(warp, [&](int thread) {
          DQX_UNROLL
          for (int n = 0; n < 4; ++n) {
            const auto word = static_cast<uint32_t>(turned[thread].word[n]);
            half[thread].word[n] = static_cast<int>((high ? word >> 4 : word) & 0x0f0f0f0fu);
          }
        });
        multiply(slice, 2 * chunk + high, half);
      }
    }
  }
}

// Products of halves with the values of step `step` of a tile. mma tile j is of channels 8 j and on.
template <class Tile, int step>
__device__ __forceinline__ void add_half_products(
    int warp, const typename Tile::Slot& slot, Probabilities<Tile>& p,
    PerThread<Sums<Tile>, ATTEND_THREADS>& sums) {
  PerThread<const void*, ATTEND_THREADS> places;
  PerThread<Quad, ATTEND_THREADS> values;
  DQX_UNROLL
  for (int group = 0; group < Tile::v_keys / GROUP; ++group) {
    PerThread<Quad, ATTEND_THREADS>& mine = p.at[step * (Tile::v_keys / GROUP) + group];
    multiply_add_halves(
        warp, mine, [](int, int) { return 0x3c003c00; },  // ones
        [&](int thread) -> FloatQuad& { return sums[thread].total; });
    DQX_UNROLL
    for (int pair = 0; pair < Tile::value_mmas / 2; ++pair) {
      each_lane(warp, [&](int thread) {
        const int lane = thread % 32, row = group * GROUP + lane % 16;
        places[thread] = &slot.rows[row * Tile::v_row + 2 * pair + lane / 16];
      });
      load_turned_matrices(warp, places, values);
      DQX_UNROLL
      for (int j = 0; j < 2; ++j) {
        multiply_add_halves(
            warp, mine, [&](int thread, int half) { return values[thread].word[2 * j + half]; },
            [&](int thread) -> FloatQuad& { return sums[thread].at[2 * pair + j]; });
      }
    }
  }
}

// Values that are not finite become 0: where a query takes all keys alike, those that nobody has
// written, too.
template <class Tile>
__device__ __forceinline__ void clear_no_numbers(typename Tile::Slot& slot, int thread) {
  auto* words = reinterpret_cast<uint32_t*>(slot.rows);
  for (int i = thread; i < Tile::v_keys * Tile::v_row * 4; i += ATTEND_THREADS) {
    const uint32_t word = words[i];
    const uint32_t low = (word & 0x7c00u) == 0x7c00u ? 0 : word & 0xffffu;
    words[i] = ((word & 0x7c000000u) == 0x7c000000u ? 0 : word & 0xffff0000u) | low;
  }
}

// Whether any row of the warp sees a key of the tile; `blind`: or sees nothing at all.
template <class Tile, bool blind>
__device__ __forceinline__ void find_busy(int warp, const typename Tile::Slot& slot,
                                          PerThread<RowState, ATTEND_THREADS>& states) {
  PerThread<bool, ATTEND_THREADS> busy;
  each_lane(warp, [&](int thread) {
    const RowState& state = states[thread];
    uint32_t any = blind && (state.largest[0] == -INFINITY || state.largest[1] == -INFINITY);
    DQX_UNROLL
    for (int word = 0; word < Tile::keys / 32; ++word) {
      any |= slot.seen[row_of(thread, 0)][word] | slot.seen[row_of(thread, 1)][word];
    }
    busy[thread] = any != 0;
  });
  const bool any = any_lane(warp, busy);
  each_lane(warp, [&](int thread) { states[thread].busy = any; });
}

// What the four threads of a row make of their `of(thread)` together.
template <class Of>
__device__ __forceinline__ void join_largest(int warp, const Of& of) {
  PerThread<float, ATTEND_THREADS> mine, others;
  DQX_UNROLL
  for (int mask = 1; mask <= 2; mask *= 2) {
    each_lane(warp, [&](int thread) { mine[thread] = of(thread); });
    exchange(warp, mask, mine, others);
    each_lane(warp, [&](int thread) { of(thread) = larger(of(thread), others[thread]); });
  }
}

// The tile that a step is of, and where in it: a step has keys, or values.
template <class Tile, int v_steps>
struct Step {
  int stop, first, of_values;  // first key in the tile; 0: keys, else values, counted from 1

  __device__ __forceinline__ explicit Step(int step) {
    constexpr int each = 1 + v_steps, parts = SEEN_KEYS / Tile::keys;
    stop = step / (each * parts);
    of_values = step % each;
    first = step / each % parts * Tile::keys + (of_values ? (of_values - 1) * Tile::v_keys : 0);
  }
};

// Where `seen` has row `thread` of the block; -1: it is no row.
__device__ __forceinline__ int seen_of_row(const Attend& call, const Place& place, int thread) {
  if (thread >= place.rows) return -1;
  const int tiles = (call.keys + SEEN_KEYS - 1) / SEEN_KEYS;
  return (static_cast<int>(place.sequence) * call.queries + query_of(place, thread)) * tiles;
}

// What all steps of a block are sent from.
struct Source {
  int first_key;   // of all
  int first_stop;  // of room.stops
};

// Sends step `step` of a belt. `seen`: what seen_of_row has found for the thread.
template <class Tile, int v_steps>
__device__ __forceinline__ void send_step(const Attend& call, const AttendOperands& given,
                                          const AttendRoom& room, const Source& source, int seen,
                                          int step, typename Tile::Slot& slot, int thread) {
  const Step<Tile, v_steps> at(step);
  const Stop stop = room.stops[source.first_stop + at.stop];
  const int key = stop.tile * SEEN_KEYS + at.first, left = call.keys - key;
  const int64_t first = int64_t{source.first_key} + key;
  if (at.of_values) {
    const uint32_t any = (at.first < 32 ? stop.any.word[0] : stop.any.word[1]) >> at.first % 32;
    send_values<Tile>(call, given, first, left, any, slot, thread);
    return;
  }
  const bool row = seen >= 0;
  const uint32_t* words = given.seen[(row ? seen : 0) + stop.tile].word + at.first / 32;
  send_keys<Tile>(call, given, first, left, words, row, slot, thread);
}

// The largest score of each row among the keys of a part; not a number where a query is none.
template <int channels>
__global__ void __launch_bounds__(ATTEND_THREADS, 3)
    find_largest(Attend call, AttendOperands given, AttendRoom room) {
  using Tile = AttendTile<channels, false>;
  __shared__ typename Tile::Slot slots[Tile::slots];
  const Place place = place_of_block<ROW_TILE>(call);
  const Stops stops = stops_of_block(call, room, place);
  const Source source{static_cast<int>(place.kv_head) * call.keys, stops.first};
  QueryCodes<Tile> q;
  PerThread<RowState, ATTEND_THREADS> states;
  PerThread<int, ATTEND_THREADS> seen;
  const auto send = [&](int step, int to, int thread) {
    send_step<Tile, 0>(call, given, room, source, seen[thread], step, slots[to], thread);
  };
  Belt<Tile, decltype(send)> belt{send, stops.count * (SEEN_KEYS / Tile::keys)};
  each_thread<ATTEND_THREADS>([&](int thread) {
    seen[thread] = seen_of_row(call, place, thread);
    DQX_UNROLL
    for (int ahead = 0; ahead < Tile::slots - 1; ++ahead) belt.send_ahead(ahead, thread);
    states[thread] = {};
    states[thread].largest[0] = states[thread].largest[1] = -INFINITY;
    load_query_codes<Tile>(call, given, place, thread, q);
  });
  while (belt.step < belt.steps) {
    belt.wait();
    belt.next([&](int warp, int slot) {
      find_busy<Tile, false>(warp, slots[slot], states);
      if (!states[warp * 32].busy) return;
      DQX_UNROLL
      for (int part = 0; part < Tile::keys / PART; ++part) {
        with_scores<Tile>(
            call, warp, slots[slot], part, q, [&](int thread, const ScaledSums& values) {
              find_largest_of<Tile>(values, slots[slot], part, thread, states[thread]);
            });
      }
    });
  }
  const Place to = place_of_block<ROW_TILE>(call);
  each_warp<ATTEND_THREADS>([&](int warp) {
    DQX_UNROLL
    for (int r = 0; r < 2; ++r) {
      join_largest(warp, [&](int thread) -> float& { return states[thread].largest[r]; });
      each_lane(warp, [&](int thread) {
        const int row = row_of(thread, r);
        if (thread % 4 || row >= to.rows) return;
        const float largest = states[thread].largest[r];
        const float scale = given.q_scales[vector_of_row(call, to, row)];
        const bool none = scale != scale && largest != -INFINITY;
        room.largest[to.part * room.rows + place_of_row(room, to, row)] = none ? scale : largest;
      });
    }
  });
}

// Channels in a row that a thread has sums of.
template <class T, int count>
struct alignas(count * sizeof(T)) Run {
  T of[count];
};

template <class Tile>
struct Runs {
  static constexpr int length = Tile::halves ? 2 : 4, count = Tile::channels / (4 * length);

  // The first channel of run n.
  __device__ __forceinline__ static int channel(const Attend& call, int n, int thread) {
    const int mine = thread % 4 * length;
    if (call.v_bits != 4) return n * (4 * length) + mine;
    return n / 2 * CHUNK + n % 2 * (call.width / 2) + mine;
  }

  __device__ __forceinline__ static bool there(const Attend& call, int n) {
    return (call.v_bits != 4 ? n : n / 2 * 2) * (4 * length) < call.width;
  }

  __device__ __forceinline__ static auto sum(const Sums<Tile>& sums, int n, int r, int i) {
    if constexpr (Tile::halves) {
      return sums.at[n].at[2 * r + i];
    } else {
      return sums.at[2 * n + i % 2].word[2 * r + i / 2];
    }
  }

  __device__ __forceinline__ static auto total(const Sums<Tile>& sums, int r) {
    if constexpr (Tile::halves) {
      return sums.total.at[2 * r];
    } else {
      return sums.total.word[2 * r];
    }
  }
};

// y of a thread's rows, if their sums are of all keys.
template <class Tile, class T>
__device__ __forceinline__ void store_results(const Attend& call, const AttendOperands& given,
                                              const Place& place, int thread,
                                              const RowState& state, const Sums<Tile>& sums) {
  using Mine = Runs<Tile>;
  const int64_t of_head = int64_t{place.head} * call.width;
  DQX_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int row = row_of(thread, r);
    if (row >= place.rows) return;
    const RowEnd end = row_end(call, state.largest[r], Mine::total(sums, r));
    T* to = static_cast<T*>(given.y) + vector_of_row(call, place, row) * call.width;
    DQX_UNROLL
    for (int n = 0; n < Mine::count; ++n) {
      if (!Mine::there(call, n)) break;
      const int channel = Mine::channel(call, n, thread);
      Run<T, Mine::length> run;
      DQX_UNROLL
      for (int i = 0; i < Mine::length; ++i) {
        const auto sum = Mine::sum(sums, n, r, i);
        store(&run.of[i], result(call, given, end, of_head + channel + i, sum));
      }
      *reinterpret_cast<Run<T, Mine::length>*>(to + channel) = run;
    }
  }
}

// Likewise the sums, if they are of a part of the keys.
template <class Tile>
__device__ __forceinline__ void store_part(const Attend& call, const AttendRoom& room,
                                           const Place& place, int thread,
                                           const Sums<Tile>& sums) {
  using Mine = Runs<Tile>;
  using T = decltype(Mine::total(sums, 0));
  DQX_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int row = row_of(thread, r);
    if (row >= place.rows) return;
    const int64_t vector = place.part * room.rows + place_of_row(room, place, row);
    if (thread % 4 == 0) static_cast<T*>(room.totals)[vector] = Mine::total(sums, r);
    T* to = static_cast<T*>(room.products) + vector * call.width;
    DQX_UNROLL
    for (int n = 0; n < Mine::count; ++n) {
      if (!Mine::there(call, n)) break;
      Run<T, Mine::length> run;
      DQX_UNROLL
      for (int i = 0; i < Mine::length; ++i) run.of[i] = Mine::sum(sums, n, r, i);
      *reinterpret_cast<Run<T, Mine::length>*>(to + Mine::channel(call, n, thread)) = run;
    }
  }
}

template <int channels, bool halves>
__global__ void __launch_bounds__(ATTEND_THREADS, channels > 128 ? 2 : 3)
    add_up(Attend call, AttendOperands given, AttendRoom room, float unit) {  // of scores in base 2
  using Tile = AttendTile<channels, halves>;
  constexpr int v_steps = Tile::v_steps;
  __shared__ typename Tile::Slot slots[Tile::slots];
  const Place place = place_of_block<ROW_TILE>(call);
  const Stops stops = stops_of_block(call, room, place);
  const Source source{static_cast<int>(place.kv_head) * call.keys, stops.first};
  QueryCodes<Tile> q;
  Probabilities<Tile> p;
  PerThread<RowState, ATTEND_THREADS> states;
  PerThread<Sums<Tile>, ATTEND_THREADS> sums;
  PerThread<int, ATTEND_THREADS> seen;
  const auto send = [&](int step, int to, int thread) {
    send_step<Tile, v_steps>(call, given, room, source, seen[thread], step, slots[to], thread);
  };
  constexpr int each = (1 + v_steps) * (SEEN_KEYS / Tile::keys);
  Belt<Tile, decltype(send)> belt{send, stops.count * each};
  each_thread<ATTEND_THREADS>([&](int thread) {
    seen[thread] = seen_of_row(call, place, thread);
    DQX_UNROLL
    for (int ahead = 0; ahead < Tile::slots - 1; ++ahead) belt.send_ahead(ahead, thread);
    load_factors(call, given, unit, place, thread, states[thread]);
    load_largest(room, place, thread, states[thread]);
    load_query_codes<Tile>(call, given, place, thread, q);
    sums[thread] = {};
  });
  const auto top = static_cast<float>(call.p_top);
  const unsigned all = halves ? 0x3c003c00u : static_cast<unsigned>(call.p_top) * 0x01010101u;
  while (belt.step < belt.steps) {
    belt.wait();
    belt.next([&](int warp, int slot) {
      find_busy<Tile, true>(warp, slots[slot], states);
      if (!states[warp * 32].busy) return;
      const auto find = [&](auto number) {
        constexpr int part = decltype(number)::value;
        with_scores<Tile>(
            call, warp, slots[slot], part, q, [&](int thread, const ScaledSums& values) {
              find_probabilities<Tile, part>(values, slots[slot], top, all, thread, states[thread],
                                             p);
            });
      };
      find(Number<0>());
      if constexpr (Tile::keys > PART) find(Number<1>());
    });
    const auto add = [&](auto number) {
      [[maybe_unused]] constexpr int step = decltype(number)::value;
      belt.wait();
      if constexpr (halves) {
        if (stops.blind) {
          each_thread<ATTEND_THREADS>([&](int thread) {
            clear_no_numbers<Tile>(slots[belt.slot], thread);
          });
        }
      }
      belt.next([&](int warp, int slot) {
        if (!states[warp * 32].busy) return;
        if constexpr (halves) {
          add_half_products<Tile, step>(warp, slots[slot], p, sums);
        } else {
          add_code_products<Tile>(call, warp, slots[slot], p, sums);
        }
      });
    };
    add(Number<0>());
    if constexpr (v_steps > 1) add(Number<1>());
  }
  const Place to = place_of_block<ROW_TILE>(call);
  each_thread<ATTEND_THREADS>([&](int thread) {
    const RowState& state = states[thread];
    if (room.parts > 1) {
      store_part<Tile>(call, room, to, thread, sums[thread]);
    } else if (call.type == Float::fp16) {
      store_results<Tile, Half>(call, given, to, thread, state, sums[thread]);
    } else {
      store_results<Tile, float>(call, given, to, thread, state, sums[thread]);
    }
  });
}

template <int channels, bool halves>
int attend_in(const Attend& call, const AttendOperands& given, const AttendRoom& room,
              Stream stream) {
  const int64_t rows = int64_t{call.queries} * (call.heads / call.kv_heads);
  const dim3 blocks(static_cast<unsigned>((rows + ROW_TILE - 1) / ROW_TILE),
                    static_cast<unsigned>(call.kv_heads),
                    static_cast<unsigned>(call.batch * room.parts));
  const int error =
      launch<ATTEND_THREADS>(find_largest<channels>, blocks, stream, call, given, room);
  if (error) return error;
  const double step = call.k_bits == 4 ? 16 : 1;  // of codes in the sums
  const double unit = 1.4426950408889634 / std::sqrt(static_cast<double>(call.width)) / step;
  return launch<ATTEND_THREADS>(add_up<channels, halves>, blocks, stream, call, given, room,
                                 static_cast<float>(unit));
}

template <int channels>
int attend_by_tiles(const Attend& call, const AttendOperands& given, const AttendRoom& room,
                    Stream stream) {
  return call.v_bits == 16 ? attend_in<channels, true>(call, given, room, stream)
                           : attend_in<channels, false>(call, given, room, stream);
}

}  // namespace
}  // namespace dqx
