// Finds the tiles of keys that blocks of attention go over.
#pragma once

#include "../on_cpu.h"
#include "paths.h"

namespace dqx {
namespace {

constexpr int LIST_THREADS = 128;

// The tiles of keys that any of the queries of a tile of rows sees, in order; all of them where a
// query sees nothing, as it takes all keys alike. A block has a tile of rows of one sequence.
__global__ void __launch_bounds__(LIST_THREADS)
    list_stops(Attend call, const Seen* seen, AttendRoom room) {
  const int shared = call.heads / call.kv_heads, tiles = (call.keys + SEEN_KEYS - 1) / SEEN_KEYS;
  const int row = static_cast<int>(blockIdx.x) * ROW_TILE, first = row / shared;
  const int end = (row + ROW_TILE - 1) / shared + 1;
  const int queries = (end < call.queries ? end : call.queries) - first;
  const Seen* of_queries = seen + (int64_t{blockIdx.y} * call.queries + first) * tiles;
  const int64_t row_tile =
      int64_t{blockIdx.y} * ((call.queries * shared + ROW_TILE - 1) / ROW_TILE) + blockIdx.x;
  Stop* stops = room.stops + row_tile * tiles;
  __shared__ bool sees[LIST_THREADS], chosen[LIST_THREADS];  // the former by halves of tiles
  PerThread<Seen, LIST_THREADS> any;
  PerThread<int, LIST_THREADS> count;  // the same for all
  each_thread<LIST_THREADS>([&](int thread) {
    const int query = thread % ROW_TILE;
    uint32_t word = query >= queries;
    for (int tile = thread / ROW_TILE; query < queries && tile < tiles; tile += 2) {
      const Seen& of_query = of_queries[int64_t{query} * tiles + tile];
      word |= of_query.word[0] | of_query.word[1];
    }
    sees[thread] = word != 0;
    count[thread] = 0;
  });
  for (int top = 0; top < tiles; top += LIST_THREADS) {
    each_thread<LIST_THREADS>([&](int thread) {
      any[thread] = {};
      chosen[thread] = false;
      const int tile = top + thread;
      if (tile >= tiles) return;
      uint32_t low = 0, high = 0;
      for (int query = 0; query < queries; ++query) {
        const Seen& of_query = of_queries[int64_t{query} * tiles + tile];
        const uint32_t all = sees[query] || sees[ROW_TILE + query] ? 0 : 0xffffffffu;
        low |= of_query.word[0] | all;
        high |= of_query.word[1] | all;
      }
      any[thread] = {{low, high}};
      chosen[thread] = (low | high) != 0;
    });
    each_thread<LIST_THREADS>([&](int thread) {
      int before = 0, all = 0;
      for (int other = 0; other < LIST_THREADS; ++other) {
        if (other < thread) before += chosen[other];
        all += chosen[other];
      }
      if (chosen[thread]) stops[count[thread] + before] = {top + thread, 0, any[thread]};
      count[thread] += all;
    });
  }
  each_thread<LIST_THREADS>([&](int thread) {
    if (thread) return;
    bool blind = false;
    for (int query = 0; query < queries; ++query) {
      blind = blind || !(sees[query] || sees[ROW_TILE + query]);
    }
    room.stop_counts[row_tile] = {count[thread], blind};
  });
}

}  // namespace
}  // namespace dqx
