// Launches the kernels of attention on quantized operands; op.py says what they compute.
#pragma once

#include "../launch.h"

namespace dqx {

constexpr int32_t MOST_HEAD_WIDTH = 256;  // channels of a head that launch_attention takes

struct Attention {
  int32_t batch, heads, kv_heads;
  int32_t queries, keys;  // positions
  int32_t width;          // channels of a head
  int32_t q_top, k_top, v_top, p_top;
  Float type;  // of q, k, v, v_scale, v_zero and y
};

size_t attention_workspace(const Attention& call);  // bytes that launch_attention needs

// q, y (batch, queries, heads · width); k, v (batch, kv heads, keys, width); visible
// (batch, 1, queries, keys); common (batch, keys); v_scale, v_zero (kv heads · width).
// The workspace begins at a multiple of 16 bytes, y at one of two of its numbers.
// cudaErrorInvalidValue where a head is wider than MOST_HEAD_WIDTH, or where there are no keys.
int launch_attention(const Attention& call, const void* q, const void* k, const void* v,
                     const bool* visible, const bool* common, const void* v_scale,
                     const void* v_zero, void* y, void* workspace, Stream stream);

}  // namespace dqx
