// Writes new keys or values into a cache, vector by vector; op.py says what it computes.
#pragma once

#include "../on_cpu.h"
#include "launch.h"

namespace dqx {
namespace {

constexpr int KV_THREADS = 128;

// Where the vector number `vector` (row, head, position) of `fresh` belongs, in vectors of the
// cache; -1 where it has no place there.
__device__ __forceinline__ int64_t kv_place(const KvUpdate& call, const int64_t* start,
                                            int64_t vector) {
  const int64_t plane = vector / call.fed;
  const int64_t position = start[plane / call.heads] + vector % call.fed;
  return position < 0 || position >= call.capacity ? -1 : plane * call.capacity + position;
}

// A thread a Word (of 1, 4 or 16 bytes) of `fresh`.
template <class Word>
__global__ void __launch_bounds__(KV_THREADS)
    kv_write(KvUpdate call, int64_t words, const Word* fresh, const int64_t* start, Word* y) {
  each_thread<KV_THREADS>([&](int thread) {
    const int64_t word = int64_t{blockIdx.x} * KV_THREADS + thread;
    if (word >= words) return;
    const int64_t length = call.bytes / static_cast<int>(sizeof(Word));
    const int64_t place = kv_place(call, start, word / length);
    if (place >= 0) y[place * length + word % length] = fresh[word];
  });
}

// A thread a Word of the cache.
template <class Word>
__global__ void __launch_bounds__(KV_THREADS)
    kv_copy(int64_t words, const Word* cache, Word* y) {
  each_thread<KV_THREADS>([&](int thread) {
    const int64_t word = int64_t{blockIdx.x} * KV_THREADS + thread;
    if (word < words) y[word] = cache[word];
  });
}

}  // namespace
}  // namespace dqx
