// Launches the kernels of attention over codes in a cache; op.py says what they compute.
#pragma once

#include "../launch.h"

namespace dqx {

struct CachedAttention {
  int32_t batch, heads, kv_heads;
  int32_t queries, capacity;  // fed positions, and those of the cache
  int32_t width;              // channels of a head
  int32_t q_top, p_top;       // p_top 0: with v_bits 16
  int32_t k_bits, v_bits;
  int32_t rotary;  // channels that are rotated first; 0: none
  Float type;      // of all that is no codes: fp32 or fp16
};

size_t cached_attention_workspace(const CachedAttention& call);  // bytes

// q (batch, queries, heads · width); k, v (batch, queries, kv heads · width);
// k_cache (batch, kv heads, capacity, width · k_bits / 8); k_scales (batch, kv heads, capacity);
// v_cache (batch, kv heads, capacity, width · v_bits / 8), with 16 bits of `type`;
// start (batch,); key_block (batch, capacity); reach (batch, queries);
// k_mean, v_scale, v_zero (kv heads · width); cos, sin (batch, queries, rotary / 2), may be null.
struct CachedOperands {
  const void *q, *k, *v;
  const int8_t* k_cache;
  const void* k_scales;
  const void* v_cache;
  const int64_t* start;
  const int32_t *key_block, *reach;
  const void *k_mean, *v_scale, *v_zero, *cos, *sin;
};

// y (batch, queries, heads · width), and the caches, each of which may be the operand's own memory:
// then the fed positions alone are written, else all.
struct CachedResults {
  void* y;
  int8_t* k_cache;
  void* k_scales;
  void* v_cache;
};

// The workspace begins at a multiple of 16 bytes; tensor cores are used where y and both caches do,
// too. The numbers of a query do not depend on others, and with codes not on the GPU either; with
// v_bits 16, sums are of as many parts of the keys as keep it busy. Positions outside of the cache
// are not written. cudaErrorInvalidValue where a head is wider than 256 channels, or cannot be
// halved for 4 bits or rotation; where there is no capacity, or 2^31 / (255 · p_top) positions of
// it and more: 33,025 with the largest p_top, 255.
int launch_cached_attention(const CachedAttention& call, const CachedOperands& operands,
                            const CachedResults& results, void* workspace, Stream stream);

}  // namespace dqx
