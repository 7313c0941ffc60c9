// All that scores wait for, in two launches: short kernels one after another would take longer than
// what they do.
#pragma once

#include "round.cuh"

namespace dqx {
namespace {

// Means of keys, which their rounding waits for, by the first `means` blocks; and `visible` (batch,
// queries, keys) in bits by the others, a thread a word.
template <class T>
__global__ void __launch_bounds__(MEAN_THREADS)
    means_and_words(Attention call, const T* k, const bool* common, float* mean,
                    const bool* visible, Seen* seen, unsigned means) {
  if (blockIdx.x < means) return mean_keys(call, k, common, mean, blockIdx.x);
  each_thread<MEAN_THREADS>([&](int thread) {
    pack_seen(int64_t{call.batch} * call.queries, call.keys, seen,
              int64_t{blockIdx.x - means} * MEAN_THREADS + thread,
              [&](int64_t query, int key) { return visible[query * call.keys + key]; });
  });
}

// Queries by the first `query_blocks` blocks; keys, and then their values, by the others.
template <class T>
__global__ void __launch_bounds__(ROUND_THREADS, 4)
    round_all(Attention call, Rounding queries, const T* q, unsigned query_blocks, Rounding keys,
              const T* k, const T* v, const T* v_scale, const T* v_zero, void* values) {
  if (blockIdx.x < query_blocks) return round_vectors(queries, q, blockIdx.x);
  const unsigned block = blockIdx.x - query_blocks;
  round_vectors(keys, k, block);
  round_values(call, v, v_scale, v_zero, values, keys.scales, block);
}

}  // namespace
}  // namespace dqx
