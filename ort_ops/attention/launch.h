// Launches the kernels of attention on quantized operands; op.py says what they compute.
#pragma once

#include "../launch.h"

namespace dqx {

constexpr int32_t MOST_HEAD_WIDTH = 256;  // channels of a head that launch_attention takes

struct Attention {
  int32_t batch, heads, kv_heads;
  int32_t queries, keys;  // positions
  int32_t width;          // channels of a head
  int32_t q_top, k_top;
  int32_t v_top, p_top;   // both 0: products of halves
  Float type;  // of q, k, v, v_scale, v_zero and y
};

size_t attention_workspace(const Attention& call);  // bytes that launch_attention needs

// q, y (batch, queries, heads · width); k, v (batch, kv heads, keys, width); visible
// (batch, 1, queries, keys); common (batch, keys); v_scale, v_zero (kv heads · width).
// The workspace begins at a multiple of 16 bytes; tensor cores are used where y does, too.
// cudaErrorInvalidValue where a head is wider than MOST_HEAD_WIDTH, where there are no keys, or
// 2^31 / (255 · p_top) of them and more: 33,025 with the largest p_top, 255.
int launch_attention(const Attention& call, const void* q, const void* k, const void* v,
                     const bool* visible, const bool* common, const void* v_scale,
                     const void* v_zero, void* y, void* workspace, Stream stream);

}  // namespace dqx
