// Attention on the integer tensor cores of SM 80 and later (mma.sync m16n8k32).
//
// A warp has 16 queries of one head, a block 16 a warp. It goes over tiles of 64 keys twice, as
// probabilities are rounded when their sum is known: first for the largest score and the sum of
// exponentials, then for scores again, codes of probabilities, and their products with values.
// Tiles of keys and of values are of one size and arrive by cp.async in one row.
//
// What the tensor cores leave of the scores is what they take as probabilities: a thread has two
// neighbouring columns of mma tiles of 8, and wants four keys in a register. So a row of keys in
// shared memory stands where its scores come out at the right thread (`row_of_key`): thread t of
// four has keys 16 a + 4 t + i, a and i from 0 to 3, of the tile.
#pragma once

#include "belt.cuh"
#include "softmax.cuh"

namespace dqx {
namespace {

// What the kernel reads that others do not.
struct TensorCoreOperands {
  const Seen* seen;  // (batch, queries, tiles of keys)
  float unit;        // log2(e) / sqrt(width)
};

template <int value_mmas>
struct ValueSums {
  Quad at[value_mmas];
};

template <class Tile>
__device__ __forceinline__ void load_state(const Attention& call, const RoundedOperands& from,
                                           float unit, const Place& place, int thread,
                                           QueryState& state) {
  state = {};
  DQX_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int query = query_of<Tile>(thread, r);
    const bool there = query < place.queries;
    const int64_t first = place.query * call.heads + place.head;
    state.most[r] = NEVER;
    state.seen[r] = !there;
    state.factor[r] = there ? (from.q_scales + first)[query * call.heads] * unit : 0;
  }
}

// Codes of a thread's queries, as the tensor cores take them.
template <class Tile>
__device__ __forceinline__ void load_query_codes(const Attention& call,
                                                 const RoundedOperands& from, const Place& place,
                                                 int thread, int slice, Quad& codes) {
  DQX_UNROLL
  for (int part = 0; part < 4; ++part) {
    const int query = query_of<Tile>(thread, part % 2);
    const int word = slice * (SLICE / 4) + part / 2 * 4 + thread % 4;
    const int* first = from.q + (place.query * call.heads + place.head) * from.words;
    const bool there = query < place.queries && word < from.words;
    codes.word[part] = there ? first[query * call.heads * from.words + word] : 0;
  }
}

// Adds products of a row's codes with 16 rows of shared memory, `first` and on, over SLICE bytes
// from chunk `chunk` on: `add(b, j)` multiplies with row 8 j and on.
template <int stride, int threads, class Add>
__device__ __forceinline__ void with_rows(int warp, const uint4* rows, int first, int chunk,
                                          const Add& add) {
  PerThread<const void*, threads> places;
  PerThread<Quad, threads> loaded;
  each_lane(warp, [&](int thread) {
    const int lane = thread % 32;
    places[thread] =
        &rows[(lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 + first * stride + chunk];
  });
  load_matrices(warp, places, loaded);
  DQX_UNROLL
  for (int j = 0; j < 2; ++j) {
    add([&](int thread, int half) { return loaded[thread].word[2 * j + half]; }, j);
  }
}

template <class Tile>
__device__ __forceinline__ void add_scores(int warp, const typename Tile::Slot& slot,
                                           PerThread<Quad, Tile::threads> (&q)[Tile::slices],
                                           PerThread<ScoreSums, Tile::threads>& sums) {
  each_lane(warp, [&](int thread) {
    DQX_UNROLL
    for (Quad& each : sums[thread].at) each = {{SUM_START, SUM_START, SUM_START, SUM_START}};
  });
  DQX_UNROLL
  for (int slice = 0; slice < Tile::slices; ++slice) {
    DQX_UNROLL
    for (int pair = 0; pair < KEY_MMAS / 2; ++pair) {
      with_rows<Tile::k_row, Tile::threads>(
          warp, slot.rows, pair * 16, slice * (SLICE / CHUNK), [&](const auto& keys, int j) {
            multiply_add(warp, q[slice], keys, [&](int thread) -> Quad& {
              return sums[thread].at[2 * pair + j];
            });
          });
    }
  }
}

template <class Tile>
__device__ __forceinline__ void add_values(int warp, const typename Tile::Slot& slot,
                                           PerThread<Quad, Tile::threads> (&p)[KEY_TILE / SLICE],
                                           PerThread<ValueSums<Tile::value_mmas>, Tile::threads>&
                                               sums) {
  DQX_UNROLL
  for (int slice = 0; slice < KEY_TILE / SLICE; ++slice) {
    DQX_UNROLL
    for (int pair = 0; pair < Tile::value_mmas / 2; ++pair) {
      with_rows<Tile::v_row, Tile::threads>(
          warp, slot.rows, pair * 16, slice * (SLICE / CHUNK), [&](const auto& values, int j) {
            multiply_add_unsigned(warp, p[slice], values, [&](int thread) -> Quad& {
              return sums[thread].at[2 * pair + j];
            });
          });
    }
  }
}

// What `work(thread, values)` does with the scores of a tile.
template <class Tile, class Work>
__device__ __forceinline__ void with_scores(int warp, const typename Tile::Slot& slot,
                                            PerThread<Quad, Tile::threads> (&q)[Tile::slices],
                                            const Work& work) {
  PerThread<ScoreSums, Tile::threads> sums;
  add_scores<Tile>(warp, slot, q, sums);
  each_lane(warp,
            [&](int thread) { work(thread, scaled(sums[thread], slot.k_scales, thread)); });
}

// Whether any query of the warp sees a key of the tile, or sees all keys alike.
template <class Tile>
__device__ __forceinline__ void find_busy(int warp, const Place& place,
                                          const typename Tile::Slot& slot,
                                          PerThread<QueryState, Tile::threads>& states) {
  PerThread<bool, Tile::threads> busy;
  each_lane(warp, [&](int thread) {
    const Seen first = slot.seen[query_of<Tile>(thread, 0)];
    const Seen second = slot.seen[query_of<Tile>(thread, 1)];
    const QueryState& state = states[thread];
    busy[thread] = (first.word[0] | first.word[1] | second.word[0] | second.word[1] |
                    state.hidden[0] | state.hidden[1]) != 0;
  });
  const bool any = warp * 16 < place.queries && any_lane(warp, busy);
  each_lane(warp, [&](int thread) { states[thread].busy = any; });
}

// Two channels in a row.
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T of[2];
};

// Sums of products of codes to y. (A sum of integers, exact, until both steps are multiplied in.)
template <class Tile, class T>
__device__ __forceinline__ void store_results(const Attention& call, const Place& place,
                                              const void* v_scale, const void* v_zero, int thread,
                                              const QueryState& state,
                                              const ValueSums<Tile::value_mmas>& sums, void* y) {
  const float step = 1 / static_cast<float>(call.p_top);
  const int first = thread % 4 * 2, kv_head = place.head / (call.heads / call.kv_heads);
  const T* scales = static_cast<const T*>(v_scale) + kv_head * call.width + first;
  const T* zeros = static_cast<const T*>(v_zero) + kv_head * call.width + first;
  DQX_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int query = query_of<Tile>(thread, r);
    if (query >= place.queries) return;
    const float none = state.scale[r] - state.scale[r];  // 0, or not a number
    T* block = static_cast<T*>(y) + (place.query * call.heads + place.head) * call.width;
    T* to = block + query * call.heads * call.width + first;
    DQX_UNROLL
    for (int j = 0; j < Tile::value_mmas; ++j) {
      if (j * 8 >= call.width) break;
      Pair<T> pair;
      DQX_UNROLL
      for (int odd = 0; odd < 2; ++odd) {
        const int zero = static_cast<int>(widened(zeros[j * 8 + odd]));
        const int sum = sums.at[j].word[2 * r + odd] - zero * static_cast<int>(state.codes[r]);
        store(&pair.of[odd],
              static_cast<float>(sum) * step * widened(scales[j * 8 + odd]) + none);
      }
      *reinterpret_cast<Pair<T>*>(to + j * 8) = pair;
    }
  }
}

// `channels`: those of a head, or more.
template <int channels, int warps>
__global__ void __launch_bounds__(32 * warps, 12 / warps)
    attend_on_tensor_cores(Attention call, RoundedOperands from, TensorCoreOperands given,
                           const void* v_scale, const void* v_zero, void* y) {
  using Tile = AttendTile<channels, warps>;
  constexpr int threads = Tile::threads;
  __shared__ typename Tile::Slot slots[Tile::slots];
  const Place place = place_of_block<Tile::queries>(call);
  const int tiles = (call.keys + KEY_TILE - 1) / KEY_TILE;
  PerThread<Quad, threads> q[Tile::slices], p[KEY_TILE / SLICE];
  PerThread<QueryState, threads> states;
  PerThread<ValueSums<Tile::value_mmas>, threads> products;
  const auto send = [&](int tile, bool values, int to, int thread) {
    if (values) {
      send_values<Tile>(call, from, place, tile, slots[to], thread);
    } else {
      send_keys<Tile>(call, from, given.seen, place, tile, slots[to], thread);
    }
  };
  Belt<Tile, decltype(send)> belt{send, tiles};
  each_thread<threads>([&](int thread) {
    DQX_UNROLL
    for (int ahead = 0; ahead < Tile::slots - 1; ++ahead) belt.send_ahead(ahead, thread);
    load_state<Tile>(call, from, given.unit, place, thread, states[thread]);
    DQX_UNROLL
    for (int slice = 0; slice < Tile::slices; ++slice) {
      load_query_codes<Tile>(call, from, place, thread, slice, q[slice][thread]);
    }
  });
  while (belt.step < tiles) {
    belt.next([&](int warp, int slot) {
      find_busy<Tile>(warp, place, slots[slot], states);
      if (!states[warp * 32].busy) return;
      with_scores<Tile>(warp, slots[slot], q, [&](int thread, const ScaledSums& values) {
        add_exponentials<Tile>(values, slots[slot], thread, states[thread]);
      });
    });
  }
  each_warp<threads>([&](int warp) {
    join_exponentials<Tile>(warp, call, states);
    each_lane(warp, [&](int thread) { products[thread] = {}; });
  });
  while (belt.step < 3 * tiles) {
    belt.next([&](int warp, int slot) {
      find_busy<Tile>(warp, place, slots[slot], states);
      if (!states[warp * 32].busy) return;
      with_scores<Tile>(warp, slots[slot], q, [&](int thread, const ScaledSums& values) {
        round_probabilities<Tile>(values, slots[slot], thread, states[thread], p);
      });
    });
    belt.next([&](int warp, int slot) {
      if (states[warp * 32].busy) add_values<Tile>(warp, slots[slot], p, products);
    });
  }
  each_warp<threads>([&](int warp) {
    join_codes<Tile>(warp, call, states);
    each_lane(warp, [&](int thread) {
      const QueryState& state = states[thread];
      if (call.type == Float::fp16) {
        store_results<Tile, Half>(call, place, v_scale, v_zero, thread, state, products[thread], y);
      } else {
        store_results<Tile, float>(call, place, v_scale, v_zero, thread, state, products[thread],
                                   y);
      }
    });
  });
}

}  // namespace
}  // namespace dqx
