// Who sees whom, as attention on codes takes it.
#pragma once

#include "round.cuh"

namespace dqx {
namespace {

// Of `visible` (batch, queries, keys). A thread makes one word.
__global__ void __launch_bounds__(ROUND_THREADS)
    pack_visible(Attention call, const bool* visible, Seen* seen) {
  each_thread<ROUND_THREADS>([&](int thread) {
    pack_seen(int64_t{call.batch} * call.queries, call.keys, seen,
              int64_t{blockIdx.x} * ROUND_THREADS + thread,
              [&](int64_t query, int key) { return visible[query * call.keys + key]; });
  });
}

}  // namespace
}  // namespace dqx
