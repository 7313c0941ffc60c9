// Attention on integers for one kind of machine. What it computes stands in op.py.
#pragma once

#include <cstdint>

namespace dqx {

constexpr int64_t MOST_ROWS = 48;       // queries of a task
constexpr int64_t MOST_CHANNELS = 1024;  // of a head

// What a node says about its arithmetic.
struct AttentionForm {
  int64_t heads = 0, kv_heads = 0, width = 0;  // of a head
  int q_top = 0, k_top = 0, v_top = 0, p_top = 0;  // largest codes
};

// One call.
struct AttentionCall {
  AttentionForm form;
  int64_t batch = 0, queries = 0, keys = 0;
  const float* q = nullptr;         // [batch][queries][heads][width]
  const float* k = nullptr;         // [batch][kv_heads][keys][width]
  const float* v = nullptr;
  const bool* visible = nullptr;    // [batch][queries][keys]
  const bool* common = nullptr;     // [batch][keys]
  const float* v_scale = nullptr;   // [kv_heads][width]
  const float* v_zero = nullptr;
  float* y = nullptr;               // [batch][queries][heads][width]
};

// Keys and values of one head and sequence as integers.
struct HeadKeys {
  uint8_t* keys;      // [panel of 64 keys][width / 4][64][4], offset by 128
  float* key_scales;  // [panels * 64]
  int8_t* values;     // [keys / 4][width, padded to 64][4], offset by -128 where they have 8 bits
  int32_t* value_sums;  // [width, padded]
};

struct AttentionSizes {
  explicit AttentionSizes(const AttentionCall& call);
  int64_t panels, depth, channels, quads;  // panels of keys; padded widths; quads of keys
  int64_t key_bytes, value_bytes, bytes;   // of one head
  int64_t rows;                            // queries that one task takes
  int64_t scratch;                         // bytes that a task needs
};

// Where the integers of head number `index` (batch, kv head) lie in a workspace.
HeadKeys head_keys(const AttentionSizes& sizes, uint8_t* workspace, int64_t index);

struct AttentionKernel {
  const char* name;
  // Keys and values of head number `index` (batch, kv head) to integers.
  void (*prepare)(const AttentionCall& call, const AttentionSizes& sizes, int64_t index,
                  const HeadKeys& into);
  // Queries [first, last) of head `head` of sequence `sequence`.
  void (*attend)(const AttentionCall& call, const AttentionSizes& sizes, int64_t sequence,
                 int64_t head, int64_t first, int64_t last, const HeadKeys& from,
                 uint8_t* scratch);
};

// The kernel of that name (see linear_w4a8/kernel.h).
const AttentionKernel& attention_kernel(const char* name);

}  // namespace dqx
