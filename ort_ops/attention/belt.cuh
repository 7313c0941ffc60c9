// How keys and values reach the tensor cores: tiles of 64 keys in shared memory, sent ahead by
// cp.async.
#pragma once

#include "../warp.cuh"
#include "kernel.cuh"

namespace dqx {
namespace {

constexpr int CHUNK = 16;  // bytes that cp.async moves
constexpr int SLICE = 32;  // bytes of depth that one mma sums over
constexpr int GROUPS = KEY_TILE / CHUNK, MINE = 4;  // a thread has MINE keys of each group
constexpr int KEY_MMAS = KEY_TILE / 8;
static_assert(KEY_TILE == SEEN_KEYS, "a tile's bits are one load");

struct alignas(16) KeyScales {
  float of[MINE];
};

// A row of shared memory has an odd number of chunks: eight rows at one place meet no bank twice.
template <int head_channels, int warps>
struct AttendTile {
  static constexpr int channels = head_channels, threads = 32 * warps, queries = 16 * warps;
  static constexpr int slices = channels / SLICE, value_mmas = channels / 8;
  static constexpr int k_row = channels / CHUNK + 1, v_row = GROUPS + 1;
  static constexpr int chunks = KEY_TILE * k_row > channels * v_row ? KEY_TILE * k_row
                                                                   : channels * v_row;
  static constexpr int slots = 3;
  // a thread copies the same chunk of several keys, and of several channels
  static constexpr int k_chunks = channels / CHUNK;
  static constexpr int k_step = threads / k_chunks, k_copies = KEY_TILE / k_step;
  static constexpr int v_step = threads / GROUPS, v_copies = channels / v_step;
  struct Slot {
    uint4 rows[chunks];
    KeyScales k_scales[KEY_TILE / MINE];
    Seen seen[queries];
  };
};

// Where a key of a tile lies: key 16 a + 4 t + 2 j + i in mma tile 2 a + j, and there in column
// 2 t + i. Of keys that share no bit it may be added.
__device__ __forceinline__ constexpr int row_of_key(int key) {
  return (key & ~15) | (key >> 1 & 1) << 3 | (key >> 2 & 3) << 1 | (key & 1);
}

// Sends tile `tile` of keys, zeros where there is nothing.
template <class Tile>
__device__ __forceinline__ void send_keys(const Attention& call, const RoundedOperands& from,
                                          const Seen* seen, const Place& place, int tile,
                                          typename Tile::Slot& slot, int thread) {
  const int64_t first = place.kv_head * call.keys + int64_t{tile} * KEY_TILE;
  const int left = call.keys - tile * KEY_TILE;
  const auto* keys = reinterpret_cast<const int8_t*>(from.k) + first * call.width;
  const int chunk = thread % Tile::k_chunks, top = thread / Tile::k_chunks;
  uint4* to = &slot.rows[row_of_key(top) * Tile::k_row + chunk];
  const int8_t* at = keys + top * call.width + chunk * CHUNK;
  const int end = chunk * CHUNK < call.width ? left - top : 0;
  DQX_UNROLL
  for (int n = 0; n < Tile::k_copies; ++n) {
    const int key = n * Tile::k_step;  // shares no bit with `top`
    copy_chunk(to + row_of_key(key) * Tile::k_row, at, key < end);
    at += Tile::k_step * call.width;
  }
  if (thread < KEY_TILE) {
    copy_one(&slot.k_scales[thread / MINE].of[thread % MINE], from.k_scales + first + thread,
             thread < left);
  }
  if (thread < Tile::queries) {
    const int tiles = (call.keys + KEY_TILE - 1) / KEY_TILE;
    const Seen* of_block = seen + place.query * tiles + tile;
    copy_one(&slot.seen[thread], of_block + thread * tiles, thread < place.queries);
  }
}

// Sends tile `tile` of values, zeros where there is nothing.
template <class Tile>
__device__ __forceinline__ void send_values(const Attention& call, const RoundedOperands& from,
                                            const Place& place, int tile,
                                            typename Tile::Slot& slot, int thread) {
  const int group = thread % GROUPS, top = thread / GROUPS;
  const int bytes = from.quads * QUAD;  // of a channel
  const auto* values = reinterpret_cast<const uint8_t*>(from.v) +
                       place.kv_head * call.width * bytes + tile * KEY_TILE;
  const uint8_t* at = values + top * bytes + group * CHUNK;
  const int end = tile * KEY_TILE + group * CHUNK < bytes ? call.width - top : 0;
  uint4* to = &slot.rows[top * Tile::v_row + group];
  DQX_UNROLL
  for (int n = 0; n < Tile::v_copies; ++n) {
    const int channel = n * Tile::v_step;
    copy_chunk(to + channel * Tile::v_row, at, channel < end);
    at += Tile::v_step * bytes;
  }
}

// A row of tiles: all of keys, then keys and values by turns. A tile is sent while Tile::slots - 1
// tiles before it are worked on.
template <class Tile, class Operands>
struct Belt {
  const Operands& send;  // (tile, of values, slot, thread)
  int tiles;
  int step = 0, slot = 0;

  __device__ __forceinline__ void send_ahead(int ahead, int thread) const {
    const int sent = step + ahead, second = sent - tiles;
    int to = slot + ahead;
    if (to >= Tile::slots) to -= Tile::slots;
    if (second < 2 * tiles) {
      send(second < 0 ? sent : second / 2, second >= 0 && second % 2, to, thread);
    }
    close_copies();
  }

  // Works on the next tile: `work(warp, slot)`.
  template <class Work>
  __device__ __forceinline__ void next(const Work& work) {
    each_thread<Tile::threads>([&](int) { wait_for_copies<Tile::slots - 2>(); });
    each_warp<Tile::threads>([&](int warp) {
      each_lane(warp, [&](int thread) { send_ahead(Tile::slots - 1, thread); });
      work(warp, slot);
    });
    ++step;
    slot = slot + 1 < Tile::slots ? slot + 1 : 0;
  }
};

}  // namespace
}  // namespace dqx
