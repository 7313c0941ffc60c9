// All that scores wait for, in one launch: short kernels one after another would take longer than
// what they do.
#pragma once

#include "write.cuh"

namespace dqx {
namespace {

// What kernels of attention take beside the caches.
struct Prepared {
  int8_t* q;
  float *q_scales, *k_scales;  // the latter null where the cache has floats
  Seen* seen;
};

// How many blocks each work has; they stand in this order.
struct Shares {
  unsigned queries, keys, values, scales, words;
};

template <class T>
__global__ void __launch_bounds__(ROUND_THREADS, 4)
    prepare(CachedAttention call, CachedOperands from, CachedResults to, Prepared into,
            Shares shares) {
  unsigned block = blockIdx.x;
  if (block < shares.queries) return round_queries<T>(call, from, into.q, into.q_scales, block);
  block -= shares.queries;
  if (block < shares.keys) return write_keys<T>(call, from, to, into.k_scales, block);
  block -= shares.keys;
  if (block < shares.values) return write_values<T>(call, from, to.v_cache, block);
  block -= shares.values;
  if (block < shares.scales) {
    return widen_scales(call, from, static_cast<const Half*>(to.k_scales), into.k_scales, block);
  }
  pack_blocks(call, from, into.seen, block - shares.scales);
}

}  // namespace
}  // namespace dqx
