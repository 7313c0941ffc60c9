// What a block of attention works on, and what y is made of.
#pragma once

#include "../warp.cuh"
#include "paths.h"
#include "round.cuh"

namespace dqx {
namespace {

struct Place {
  int64_t sequence, kv_head;  // the latter of those of all sequences
  int head;                   // it, of its own sequence
  int first, rows;            // rows of the key head
  int shared;                 // query heads of a key head
  int part;
};

// blockIdx, asked for anew each time: what follows from it takes no registers in between.
__device__ __forceinline__ dim3 index_of_block() {
#ifdef DQX_ON_CPU
  return blockIdx;
#else
  dim3 index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index.x));
  asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(index.y));
  asm volatile("mov.u32 %0, %%ctaid.z;" : "=r"(index.z));
  return index;
#endif
}

// Of `most` rows a block. Blocks are counted by rows, by key heads, by parts and sequences.
template <int most>
__device__ __forceinline__ Place place_of_block(const Attend& call) {
  const dim3 index = index_of_block();
  Place place;
  place.part = static_cast<int>(index.z) / call.batch;
  place.sequence = static_cast<int>(index.z) % call.batch;
  place.head = static_cast<int>(index.y);
  place.kv_head = place.sequence * call.kv_heads + place.head;
  place.shared = call.heads / call.kv_heads;
  place.first = static_cast<int>(index.x) * most;
  const int left = call.queries * place.shared - place.first;
  place.rows = left < most ? left : most;
  return place;
}

__device__ __forceinline__ int query_of(const Place& place, int row) {
  return (place.first + row) / place.shared;
}

// Which vector of q and y row `row` of the block is.
__device__ __forceinline__ int64_t vector_of_row(const Attend& call, const Place& place, int row) {
  const int64_t query = place.sequence * call.queries + query_of(place, row);
  const int head = place.head * place.shared + (place.first + row) % place.shared;
  return query * call.heads + head;
}

// Which of all rows it is, in what blocks tell each other.
__device__ __forceinline__ int64_t place_of_row(const AttendRoom& room, const Place& place,
                                                int row) {
  return place.kv_head * room.rows_of_head + place.first + row;
}

// The tiles of a block: `count` of room.stops from `first` on.
struct Stops {
  int first, count;
  bool blind;
};

// Those of the row tile that holds the block's rows; a part of them.
__device__ __forceinline__ Stops stops_of_block(const Attend& call, const AttendRoom& room,
                                                const Place& place) {
  const int row_tiles = (call.queries * place.shared + ROW_TILE - 1) / ROW_TILE;
  const int tiles = (call.keys + SEEN_KEYS - 1) / SEEN_KEYS;
  const int row_tile = static_cast<int>(place.sequence) * row_tiles + place.first / ROW_TILE;
  const StopCount all = room.stop_counts[row_tile];
  const int first = static_cast<int>(int64_t{all.count} * place.part / room.parts);
  const int last = static_cast<int>(int64_t{all.count} * (place.part + 1) / room.parts);
  return {row_tile * tiles + first, last - first, all.blind != 0};
}

__device__ __forceinline__ float value_at(const void* values, Float type, int64_t place) {
  return type == Float::fp16 ? widened(static_cast<const Half*>(values)[place])
                             : static_cast<const float*>(values)[place];
}

// What all channels of a row are finished with: the sum of its codes, or of its exponentials.
struct RowEnd {
  float share;  // of one in it
  float none;   // 0, or not a number
  int codes;
};

// `largest` of a row that sees nothing is -inf: all keys count alike, whatever `total` says, which
// has counted keys behind the last one.
__device__ __forceinline__ RowEnd row_end(const Attend& call, float largest, int total) {
  const bool blind = largest == -INFINITY;
  const int codes = blind ? call.keys * call.p_top : total;
  return {1 / static_cast<float>(codes), blind ? 0 : largest - largest, codes};
}
__device__ __forceinline__ RowEnd row_end(const Attend& call, float largest, float total) {
  const bool blind = largest == -INFINITY;
  return {1 / (blind ? static_cast<float>(call.keys) : total), blind ? 0 : largest - largest, 0};
}

// Of a sum of products of codes, exact until here; `channel` is one of all key heads.
__device__ __forceinline__ float result(const Attend& call, const AttendOperands& from,
                                        const RowEnd& end, int64_t channel, int sum) {
  const int zero = static_cast<int>(value_at(from.v_zero, call.type, channel)) -
                   (call.v_bits == 8 ? 128 : 0);
  const float mean = static_cast<float>(sum - zero * end.codes) * end.share;
  return mean * value_at(from.v_scale, call.type, channel) + end.none;
}
__device__ __forceinline__ float result(const Attend&, const AttendOperands&, const RowEnd& end,
                                        int64_t, float sum) {
  return sum * end.share + end.none;
}

}  // namespace
}  // namespace dqx
