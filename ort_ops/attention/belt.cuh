// How keys and values reach the tensor cores: tiles in shared memory, sent ahead by cp.async.
#pragma once

#include "rows.cuh"

namespace dqx {
namespace {

constexpr int CHUNK = 16;  // bytes that cp.async moves
constexpr int SLICE = 32;  // bytes of depth that one mma of bytes sums over
constexpr int GROUP = 16;  // keys that four threads share, MINE each
constexpr int MINE = 4;
constexpr int ATTEND_THREADS = 2 * ROW_TILE;  // a warp has 16 rows

struct alignas(16) KeyScales {
  float of[MINE];
};

// A row of shared memory has an odd number of chunks: eight rows at one place meet no bank twice.
template <int head_channels, bool in_halves>
struct AttendTile {
  static constexpr int channels = head_channels;
  static constexpr bool halves = in_halves;  // values, and their products
  static constexpr int keys = channels > (halves ? 64 : 128) ? 32 : 64, groups = keys / GROUP;
  static constexpr int slices = channels / SLICE, value_mmas = channels / 8;
  // halves of 32 keys come at once, if they have room
  static constexpr int v_steps = halves && channels != 128 ? 2 : 1, v_keys = keys / v_steps;
  static constexpr int k_row = channels / CHUNK + 1;
  static constexpr int v_row = (halves ? 2 : 1) * channels / CHUNK + 1;
  static constexpr int chunks = keys * k_row > v_keys * v_row ? keys * k_row : v_keys * v_row;
  static constexpr int slots = 3;
  struct Slot {
    uint4 rows[chunks];
    KeyScales k_scales[keys / MINE];
    uint32_t seen[ROW_TILE][keys / 32];
  };
};

// Where a key of a tile lies: key 16 a + 4 t + 2 j + i in row 16 a + 8 j + 2 t + i. Of keys that
// share no bit it may be added.
__device__ __forceinline__ constexpr int row_of_key(int key) {
  return (key & ~15) | (key >> 1 & 1) << 3 | (key >> 2 & 3) << 1 | (key & 1);
}

// Sends `keys` vectors of `bytes` each from `from` on, of which `there(key)` says which there are;
// zeros for others and behind the end of a vector of `most_chunks`.
template <int keys, int most_chunks, int stride, class There>
__device__ __forceinline__ void send_rows(const int8_t* from, int bytes, uint4* rows, int thread,
                                          const There& there) {
  constexpr int step = ATTEND_THREADS / most_chunks, copies = (keys + step - 1) / step;
  static_assert(keys % step == 0, "all threads copy alike");
  const int chunk = thread % most_chunks, top = thread / most_chunks;
  const bool filled = chunk * CHUNK < bytes;
  uint4* to = rows + row_of_key(top) * stride + chunk;
  const int8_t* at = from + top * bytes + chunk * CHUNK;
  DQX_UNROLL
  for (int n = 0; n < copies; ++n) {
    copy_chunk(to + row_of_key(n * step) * stride, at, filled && there(n * step + top));
    at += step * bytes;
  }
}

// Keys `first` and on, of all; `left` of them at most. `seen`: which of them this thread's row sees,
// if it is a row.
template <class Tile>
__device__ __forceinline__ void send_keys(const Attend& call, const AttendOperands& from,
                                          int64_t first, int left, const uint32_t* seen,
                                          bool row, typename Tile::Slot& slot, int thread) {
  constexpr int chunks = Tile::channels / CHUNK;
  const auto there = [&](int key) { return key < left; };
  if (call.k_bits == 8) {
    send_rows<Tile::keys, chunks, Tile::k_row>(from.k + first * call.width, call.width, slot.rows,
                                               thread, there);
  } else {
    send_rows<Tile::keys, chunks / 2, Tile::k_row>(from.k + first * (call.width / 2),
                                                   call.width / 2, slot.rows, thread, there);
  }
  if (thread < Tile::keys) {
    copy_one(&slot.k_scales[thread / MINE].of[thread % MINE], from.k_scales + first + thread,
             thread < left);
  }
  if (thread >= ROW_TILE) return;
  if constexpr (Tile::keys == SEEN_KEYS) {
    copy_one(reinterpret_cast<Seen*>(slot.seen[thread]), reinterpret_cast<const Seen*>(seen),
             row);
  } else {
    copy_one(slot.seen[thread], seen, row);
  }
}

// Values of keys `first` and on, likewise. Halves that nobody sees may be no numbers, so they stay
// behind: `any` has a bit for each that somebody sees.
template <class Tile>
__device__ __forceinline__ void send_values(const Attend& call, const AttendOperands& from,
                                            int64_t first, int left, uint32_t any,
                                            typename Tile::Slot& slot, int thread) {
  constexpr int chunks = Tile::channels / CHUNK;
  const auto* values = static_cast<const int8_t*>(from.v);
  if constexpr (Tile::halves) {
    send_rows<Tile::v_keys, 2 * chunks, Tile::v_row>(
        values + first * (2 * call.width), 2 * call.width, slot.rows, thread,
        [&](int key) { return key < left && (any >> key & 1); });
  } else {
    const auto there = [&](int key) { return key < left; };
    if (call.v_bits == 8) {
      send_rows<Tile::v_keys, chunks, Tile::v_row>(values + first * call.width, call.width,
                                                   slot.rows, thread, there);
    } else {
      send_rows<Tile::v_keys, chunks / 2, Tile::v_row>(
          values + first * (call.width / 2), call.width / 2, slot.rows, thread, there);
    }
  }
}

// A row of `steps` tiles. One is sent, `send(step, slot, thread)`, while Tile::slots - 1 tiles
// before it are worked on.
template <class Tile, class Send>
struct Belt {
  const Send& send;
  int steps;
  int step = 0, slot = 0;

  __device__ __forceinline__ void send_ahead(int ahead, int thread) const {
    int to = slot + ahead;
    if (to >= Tile::slots) to -= Tile::slots;
    if (step + ahead < steps) send(step + ahead, to, thread);
    close_copies();
  }

  // Until the next tile is there.
  __device__ __forceinline__ void wait() const {
    each_thread<ATTEND_THREADS>([&](int) { wait_for_copies<Tile::slots - 2>(); });
  }

  // Works on it: `work(warp, slot)`.
  template <class Work>
  __device__ __forceinline__ void next(const Work& work) {
    each_warp<ATTEND_THREADS>([&](int warp) {
      each_lane(warp, [&](int thread) { send_ahead(Tile::slots - 1, thread); });
      work(warp, slot);
    });
    ++step;
    slot = slot + 1 < Tile::slots ? slot + 1 : 0;
  }
};

}  // namespace
}  // namespace dqx
