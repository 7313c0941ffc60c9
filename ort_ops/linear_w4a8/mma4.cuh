// Linears of 4-bit weights and 4-bit inputs on the INT4 tensor cores of SM 80 to 89 (mma.sync
// m16n8k64); later GPUs have none, and nothing here is called there.
//
// Tiles and threads are those of tensor_core.cuh, of codes two a byte on both sides. A thread reads
// eight columns of eight inputs, 8 by 8 codes, and turns them round: halves of bytes by masks, then
// bytes by permutations. Nothing is widened. Sums of a group are integers; they go into the totals
// times the group's step, as integers too, or times its scales, as floats.
#pragma once

#include "tensor_core.cuh"

namespace dqx {
namespace {

constexpr int NIBBLE_DEPTH = 64;  // inputs of a stage, and of one mma
constexpr int NIBBLE_WARPS = 4, NIBBLE_COLUMNS = NIBBLE_WARPS * WARP_COLUMNS;

template <int rows>
struct NibbleTiling {
  static constexpr int threads = 32 * NIBBLE_WARPS, height = rows, row_tiles = rows / 16;
  static constexpr int x_chunks = NIBBLE_DEPTH / 2 / CHUNK;   // of a row of x
  static constexpr int w_chunks = NIBBLE_COLUMNS / 2 / CHUNK;  // of an input's weights
  static constexpr int step_chunks = NIBBLE_COLUMNS / CHUNK;
  static constexpr int w_step = threads / w_chunks, w_copies = NIBBLE_DEPTH / w_step;
  static_assert(rows * x_chunks <= threads, "one chunk of x a thread");
  static_assert(w_chunks == 8, "a row of weights meets every bank once");
  struct alignas(128) Stage {
    uint4 x[rows * x_chunks];
    uint4 weight[NIBBLE_DEPTH * w_chunks];
    alignas(16) int8_t steps[NIBBLE_COLUMNS];
  };
};

// Where chunk `chunk` of row `row` of x lies, so that eight rows at one place meet no bank twice.
__device__ __forceinline__ int nibble_x_place(int row, int chunk) {
  return row * 2 + (chunk ^ (row >> 2 & 1));
}

// Likewise of the weights of input `k`; threads of a warp read inputs that are 8 apart.
__device__ __forceinline__ int nibble_w_place(int k, int chunk) {
  return k * 8 + (chunk ^ 2 * (k >> 3 & 3));
}

// What a thread copies, and from where; `steps` are those of the stage's group, up to `group_end`.
struct NibbleSender {
  const int8_t* x;
  const uint8_t* weight;
  const int8_t* steps;
  int k, group_end;
};

template <class Tile>
__device__ __forceinline__ NibbleSender nibble_sender(const Linear& call, const int8_t* x,
                                                      const LinearWeight& weight,
                                                      const Part& part, int thread) {
  const int64_t row = part.row + thread / Tile::x_chunks;
  const int input = part.first + thread / Tile::w_chunks;
  const int column = part.column + thread % Tile::w_chunks * (CHUNK * 2);
  return {x + (row * call.depth + part.first) / 2 + thread % Tile::x_chunks * CHUNK,
          static_cast<const uint8_t*>(weight.codes) + (int64_t{input} * call.width + column) / 2,
          weight.steps + int64_t{part.first / call.group} * call.width + part.column,
          part.first, (part.first / call.group + 1) * call.group};
}

// Sends for one stage; zeros where there is nothing.
template <class Tile, bool stepped>
__device__ __forceinline__ void send_nibbles(const Linear& call, const Part& part,
                                             NibbleSender& from, typename Tile::Stage& stage,
                                             int thread) {
  const int row = thread / Tile::x_chunks, chunk = thread % Tile::x_chunks;
  if (row < Tile::height) {
    copy_chunk(&stage.x[nibble_x_place(row, chunk)], from.x,
               from.k + chunk * (CHUNK * 2) < part.last && part.row + row < call.rows);
  }
  const int w_chunk = thread % Tile::w_chunks, first = thread / Tile::w_chunks;
  const bool wide = part.column + w_chunk * (CHUNK * 2) < call.width;
  const int64_t jump = int64_t{Tile::w_step} * call.width / 2;
  DQX_UNROLL
  for (int n = 0; n < Tile::w_copies; ++n) {
    const int k = first + n * Tile::w_step;
    copy_chunk(&stage.weight[nibble_w_place(k, w_chunk)], from.weight + n * jump,
               wide && from.k + k < part.last);
  }
  if constexpr (stepped) {
    if (thread < Tile::step_chunks) {
      copy_chunk(&stage.steps[thread * CHUNK], from.steps + thread * CHUNK,
                 part.column + thread * CHUNK < call.width);
    }
    if (from.k + NIBBLE_DEPTH >= from.group_end) {
      from.steps += call.width;
      from.group_end += call.group;
    }
  }
  from.x += NIBBLE_DEPTH / 2;
  from.weight += Tile::w_copies * jump;
  from.k += NIBBLE_DEPTH;
}

// Eight inputs of 8 columns, a register each input, as a register each column.
__device__ __forceinline__ void turn_nibbles(const uint32_t (&inputs)[8],
                                             uint32_t (&columns)[OCTETS]) {
  uint32_t even[4], odd[4], turned[4];  // pairs of inputs of columns 0, 2, 4, 6 and 1, 3, 5, 7
  DQX_UNROLL
  for (int pair = 0; pair < 4; ++pair) {
    const uint32_t a = inputs[2 * pair], b = inputs[2 * pair + 1];
    even[pair] = (a & 0x0f0f0f0fu) | (b << 4 & 0xf0f0f0f0u);
    odd[pair] = (a >> 4 & 0x0f0f0f0fu) | (b & 0xf0f0f0f0u);
  }
  turn(even, turned);
  DQX_UNROLL
  for (int pair = 0; pair < 4; ++pair) columns[2 * pair] = turned[pair];
  turn(odd, turned);
  DQX_UNROLL
  for (int pair = 0; pair < 4; ++pair) columns[2 * pair + 1] = turned[pair];
}

// The weights of one thread in a stage, as mma takes them.
template <class Tile>
__device__ __forceinline__ void read_nibbles(const typename Tile::Stage& stage, int thread,
                                             Columns& columns) {
  const int lane = thread % 32, octet = lane / 4, four = lane % 4, word = thread / 32 * 8 + octet;
  const auto* weight = reinterpret_cast<const uint32_t*>(stage.weight) +
                       nibble_w_place(four * 8, word / 4) * 4 + word % 4;
  DQX_UNROLL
  for (int half = 0; half < 2; ++half) {
    uint32_t inputs[8], turned[OCTETS];
    DQX_UNROLL
    for (int i = 0; i < 8; ++i) inputs[i] = weight[(half * 32 + i) * Tile::w_chunks * 4];
    turn_nibbles(inputs, turned);
    DQX_UNROLL
    for (int j = 0; j < OCTETS; ++j) columns.at[j][half] = turned[j];
  }
}

// Adds the products of one stage to the sums of the run.
template <class Tile, class Sums>
__device__ __forceinline__ void multiply_nibbles(const typename Tile::Stage& stage, int warp,
                                                 Sums& sums) {
  PerThread<Columns, Tile::threads> columns;
  PerThread<const void*, Tile::threads> places;
  PerThread<Quad, Tile::threads> x;
  each_lane(warp, [&](int thread) { read_nibbles<Tile>(stage, thread, columns[thread]); });
  DQX_UNROLL
  for (int tile = 0; tile < Tile::row_tiles; ++tile) {
    each_lane(warp, [&](int thread) {
      const int lane = thread % 32;
      places[thread] = &stage.x[nibble_x_place(tile * 16 + lane % 16, lane / 16)];
    });
    load_matrices(warp, places, x);
    DQX_UNROLL
    for (int j = 0; j < OCTETS; ++j) {
      multiply_add_nibbles(
          warp, x, [&](int thread, int half) { return columns[thread].at[j][half]; },
          [&](int thread) -> Quad& { return sums[thread].at[tile][j]; });
    }
  }
}

// Adds the sums of a group times its steps, and begins new ones.
template <class Tile, class Sums, class Totals>
__device__ __forceinline__ void add_steps(const typename Tile::Stage& stage, int warp, Sums& sums,
                                          Totals& totals) {
  each_lane(warp, [&](int thread) {
    DQX_UNROLL
    for (int odd = 0; odd < 2; ++odd) {
      const auto* steps = reinterpret_cast<const uint32_t*>(
          &stage.steps[column_in_block(thread, odd, 0)]);
      const uint32_t words[2] = {steps[0], steps[1]};
      DQX_UNROLL
      for (int j = 0; j < OCTETS; ++j) {
        const int step = static_cast<int8_t>(words[j / 4] >> j % 4 * 8);
        DQX_UNROLL
        for (int tile = 0; tile < Tile::row_tiles; ++tile) {
          DQX_UNROLL
          for (int c = odd; c < 4; c += 2) {
            totals[thread].sums.at[tile][j].word[c] += sums[thread].at[tile][j].word[c] * step;
            sums[thread].at[tile][j].word[c] = 0;
          }
        }
      }
    }
  });
}

// x · weight over the inputs of `part`. The last stage may be still read when it returns.
template <class Tile, bool channel, class Totals>
__device__ __forceinline__ void nibble_product(const Linear& call, const Rounded& x,
                                               const LinearWeight& weight, const Part& part,
                                               typename Tile::Stage* stages, Totals& totals) {
  const int count = (part.last - part.first + NIBBLE_DEPTH - 1) / NIBBLE_DEPTH;
  PerThread<Accumulators<Tile::row_tiles>, Tile::threads> run;
  PerThread<NibbleSender, Tile::threads> senders;
  const auto fill = [&](int step, int stage, int thread) {
    if (step < count) {
      send_nibbles<Tile, channel>(call, part, senders[thread], stages[stage], thread);
    }
    close_copies();
  };
  each_thread<Tile::threads>([&](int thread) {
    run[thread] = {};
    totals[thread] = {};
    senders[thread] = nibble_sender<Tile>(call, x.codes, weight, part, thread);
  });
  each_thread<Tile::threads>([&](int thread) {
    DQX_UNROLL
    for (int step = 0; step < STAGES - 1; ++step) fill(step, step, thread);
  });
  int stage = 0, empty = STAGES - 1;
  int end = channel ? (part.first / call.group + 1) * call.group : run_end(call, part.first);
  for (int step = 0; step < count; ++step) {
    const int k = part.first + step * NIBBLE_DEPTH, next = k + NIBBLE_DEPTH;
    each_thread<Tile::threads>([&](int) { wait_for_copies<STAGES - 2>(); });
    each_warp<Tile::threads>([&](int warp) {
      each_lane(warp, [&](int thread) { fill(step + STAGES - 1, empty, thread); });
      multiply_nibbles<Tile>(stages[stage], warp, run);
      if (next >= end || step + 1 == count) {
        if constexpr (channel) {
          add_steps<Tile>(stages[stage], warp, run, totals);
        } else {
          add_run<Tile>(call, x, weight, part, k, warp, run, totals);
        }
      }
    });
    if (next >= end) end = channel ? end + call.group : run_end(call, next);
    stage = stage + 1 < STAGES ? stage + 1 : 0;
    empty = empty + 1 < STAGES ? empty + 1 : 0;
  }
}

template <bool channel, bool gated, int rows>
__global__ void __launch_bounds__(32 * NIBBLE_WARPS)
    int4_product(Linear call, Rounded x, LinearWeight weight, LinearWeight up, const void* bias,
                 void* y, float* partial, int part_depth) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  __trap();
#else
  using Tile = NibbleTiling<rows>;
  using Totals = PerThread<Products<channel, Tile::row_tiles>, Tile::threads>;
  __shared__ typename Tile::Stage stages[STAGES];
  Totals totals;
  [[maybe_unused]] Totals others;
  const int first = static_cast<int>(blockIdx.z) * part_depth;
  const Part part{int64_t{blockIdx.x} * rows, static_cast<int>(blockIdx.y) * NIBBLE_COLUMNS, first,
                  first + part_depth < call.depth ? first + part_depth : call.depth};
  nibble_product<Tile, channel>(call, x, weight, part, stages, totals);
  if constexpr (gated) nibble_product<Tile, channel>(call, x, up, part, stages, others);
  store_tile<Tile, channel, gated>(call, x, weight, up, part, bias, y, partial, totals, others);
#endif
}

}  // namespace
}  // namespace dqx
