// Joins what blocks have found in parts of the keys.
#pragma once

#include "rows.cuh"

namespace dqx {
namespace {

constexpr int JOIN_THREADS = 128;

// y from the sums of all parts. A thread a channel of a row.
template <class T>
__global__ void __launch_bounds__(JOIN_THREADS)
    join_parts(Attend call, AttendOperands given, AttendRoom room) {
  each_thread<JOIN_THREADS>([&](int thread) {
    const int shared = call.heads / call.kv_heads;
    const int64_t of_head = room.rows_of_head;
    const int64_t index = int64_t{blockIdx.x} * JOIN_THREADS + thread, row = index / call.width;
    if (row >= room.rows) return;
    T sum = 0, total = 0;
    float largest = -INFINITY;
    for (int part = 0; part < room.parts; ++part) {  // always in this order
      sum += static_cast<const T*>(room.products)[part * room.rows * call.width + index];
      total += static_cast<const T*>(room.totals)[part * room.rows + row];
      largest = larger(largest, room.largest[part * room.rows + row]);
    }
    const int64_t kv_head = row / of_head, query = row % of_head / shared;
    const int64_t head = kv_head % call.kv_heads * shared + row % shared;
    const int channel = static_cast<int>(index % call.width);
    const int64_t of_values = kv_head % call.kv_heads * call.width + channel;
    const float y = result(call, given, row_end(call, largest, total), of_values, sum);
    const int64_t vector =
        (kv_head / call.kv_heads * call.queries + query) * call.heads + head;
    if (call.type == Float::fp16) {
      store(static_cast<Half*>(given.y) + vector * call.width + channel, y);
    } else {
      store(static_cast<float*>(given.y) + vector * call.width + channel, y);
    }
  });
}

}  // namespace
}  // namespace dqx
