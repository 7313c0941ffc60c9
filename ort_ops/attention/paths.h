// Attention on codes, whichever operator has made them, and the kernels that can do it: a .cu file
// each for those of tensor cores.
//
// A row is a query of one head. Rows of the query heads that share a key head stand in one line,
// those of a query side by side; a block has up to ROW_TILE of them.
#pragma once

#include "launch.h"

namespace dqx {

constexpr int ROW_TILE = 64, SEEN_KEYS = 64;

// Whether a query sees each of 64 keys: a bit each.
struct alignas(8) Seen {
  uint32_t word[2];
};

// A tile of SEEN_KEYS keys that a block goes over, and those that any of its queries sees.
struct alignas(16) Stop {
  int32_t tile, spare;
  Seen any;
};

struct StopCount {
  int32_t count;
  int32_t blind;  // not 0: a query of the rows sees nothing, and takes all keys alike
};

struct Attend {
  int32_t batch, heads, kv_heads;
  int32_t queries, keys;
  int32_t width;   // channels of a head
  int32_t k_bits;  // 8: a code a byte; 4: two, c + 8 of channel i low, of i + width / 2 high
  int32_t v_bits;  // 8: c - 128 in a byte; 4: two codes likewise; 16: values of `v_type`
  int32_t p_top;   // 0 if v_bits is 16
  Float v_type;
  Float type;  // of y, v_scale and v_zero
};

struct AttendOperands {
  const int8_t* q;        // (batch, queries, heads, width up to a multiple of 4), zeros at the end
  const float* q_scales;  // (batch, queries, heads)
  const int8_t* k;        // (batch, kv heads, keys, bytes)
  const float* k_scales;  // (batch, kv heads, keys)
  const void* v;          // (batch, kv heads, keys, bytes)
  const Seen* seen;       // (batch, queries, tiles of SEEN_KEYS keys)
  const void *v_scale, *v_zero;  // (kv heads, width)
  void* y;                       // (batch, queries, heads, width)
};

// What blocks tell each other, by kernels in turn.
struct AttendRoom {
  Stop* stops;      // (batch, tiles of rows, tiles of keys): the first of each are set, as many as
  StopCount* stop_counts;
  float* largest;   // (parts, batch, kv heads, rows): sums times scales of keys; -inf: none seen
  void* products;   // (parts, batch, kv heads, rows, width): of more than one part
  void* totals;     // (parts, batch, kv heads, rows)
  int32_t parts;    // of keys
  int64_t rows;     // of all sequences and key heads
  int64_t rows_of_head;
};

constexpr int INVALID_VALUE = 1;  // cudaErrorInvalidValue

// Whether a head is not wider than MOST_HEAD_WIDTH, there are keys, and sums of products of so many
// codes stay within 32 bits.
bool can_attend(const Attend& call);

size_t attend_workspace(const Attend& call);  // bytes that `attend` needs

// y of all queries; the workspace begins at a multiple of 16 bytes.
int attend(const Attend& call, const AttendOperands& given, void* workspace, Stream stream);

// The kernels: y, or, but for the plain one, sums of more than one part. `room` has its stops.
int attend_64(const Attend& call, const AttendOperands& given, const AttendRoom& room,
              Stream stream);
int attend_128(const Attend& call, const AttendOperands& given, const AttendRoom& room,
               Stream stream);
int attend_256(const Attend& call, const AttendOperands& given, const AttendRoom& room,
               Stream stream);
int attend_plain(const Attend& call, const AttendOperands& given, const AttendRoom& room,
                 Stream stream);

}  // namespace dqx
