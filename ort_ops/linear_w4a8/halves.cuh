// Linears of 4- and 8-bit weights and inputs in halves (fp16 or bf16), on tensor cores of floats
// (mma.sync m16n8k16); inputs are not rounded.
//
// Made for few rows: weights are the operand of 16, x that of 8, so 8 rows fill an mma. A block
// computes ROWS rows of y by 64 columns a warp. Weights arrive as in tensor_core.cuh. A thread
// reads eight columns of four inputs; two inputs of a column make a register of mma. Which input is
// which is free as long as both operands agree, so a thread has eight inputs in a row of 32 and
// reads them of x at once. Columns 2j and 2j + 1 of the warp's eight octets make up mma tile j,
// which leaves a thread with eight columns in a row.
//
// Sums of a group are of codes, so that no weight is rounded, and go into the totals times the
// group's scales, which arrive with the stage that ends the group.
#pragma once

#include "tensor_core.cuh"
#include "widen.cuh"

namespace dqx {
namespace {

constexpr int HALF_TILES = OCTETS / 2;          // of mma, in a warp's columns
constexpr int HALVES = CHUNK / 2;               // of a chunk
constexpr int X_CHUNKS = STAGE_DEPTH / HALVES;  // of a row of x

template <int weight_bits, int rows>
struct HalfTiling {
  static constexpr int warps = weight_bits == 4 ? 4 : 2, threads = 32 * warps;
  static constexpr int columns = WARP_COLUMNS * warps, height = rows, row_tiles = rows / 8;
  static constexpr int w_chunks = columns * weight_bits / 8 / CHUNK;  // of an input's weights
  static constexpr int w_step = threads / w_chunks, w_copies = STAGE_DEPTH / w_step;
  static constexpr int x_step = threads / X_CHUNKS, x_copies = (rows + x_step - 1) / x_step;
  static constexpr int scale_chunks = columns * static_cast<int>(sizeof(float)) / CHUNK;
  static_assert(2 * scale_chunks <= threads, "one chunk of scales a thread");
  static_assert(w_chunks == 8, "a row of weights meets every bank once");
  struct alignas(128) Stage {
    uint4 x[rows * X_CHUNKS];
    uint4 weight[STAGE_DEPTH * w_chunks];
    uint4 scales[2][scale_chunks];  // of both slices, as they are stored
  };
};

// Where chunk `chunk` of row `row` of x lies, so that four chunks of two rows meet no bank twice.
__device__ __forceinline__ int half_x_place(int row, int chunk) {
  return row * X_CHUNKS + (chunk ^ 4 * (row & 1));
}

// Likewise of the weights of input `k`; threads of a warp read inputs that are 8 apart.
__device__ __forceinline__ int half_w_place(int k, int chunk) {
  return k * 8 + (chunk ^ 2 * (k >> 3 & 3));
}

// What a thread copies, and from where. `group_end`: of the group that the stage's first input is
// in; `scales`: the thread's chunk of that group's.
struct HalfSender {
  const uint16_t* x;
  const uint8_t* weight;
  const char* scales;
  int k, group_end;
};

template <class Tile, int weight_bits>
__device__ __forceinline__ HalfSender half_sender(const Linear& call, const void* x,
                                                  const LinearWeight& weight, const Part& part,
                                                  int thread) {
  const int64_t row = part.row + thread / X_CHUNKS;
  const int input = part.first + thread / Tile::w_chunks, group = part.first / call.group;
  const int column = part.column + thread % Tile::w_chunks * (CHUNK * 8 / weight_bits);
  const int size = call.scales == Float::fp16 ? 2 : 4;
  return {static_cast<const uint16_t*>(x) + row * call.depth + part.first +
              thread % X_CHUNKS * HALVES,
          static_cast<const uint8_t*>(weight.codes) +
              (int64_t{input} * call.width + column) * weight_bits / 8,
          static_cast<const char*>(weight.scales) +
              (int64_t{group} * call.width + part.column) * size,
          part.first, (group + 1) * call.group};
}

// Sends the scales of the groups that end in the stage.
template <class Tile>
__device__ __forceinline__ void send_scales(const Linear& call, const Part& part, HalfSender& from,
                                            typename Tile::Stage& stage, int thread) {
  const int in_chunk = call.scales == Float::fp16 ? CHUNK / 2 : CHUNK / 4;
  const int chunk = thread % Tile::scale_chunks, column = chunk * in_chunk;
  DQX_UNROLL
  for (int slice = 0; slice < 2; ++slice) {
    const int end = from.k + (slice + 1) * SLICE;
    if (end < from.group_end && end < part.last) continue;
    if (thread / Tile::scale_chunks == slice && column < Tile::columns) {
      copy_chunk(&stage.scales[slice][chunk], from.scales + chunk * CHUNK,
                 end - SLICE < part.last && part.column + column < call.width);
    }
    if (end < from.group_end) continue;
    from.scales += int64_t{call.width} * (CHUNK / in_chunk);
    from.group_end += call.group;
  }
}

// Sends for one stage; zeros where there is nothing.
template <class Tile, int weight_bits>
__device__ __forceinline__ void send_halves(const Linear& call, const Part& part, HalfSender& from,
                                            typename Tile::Stage& stage, int thread) {
  const int chunk = thread % X_CHUNKS, top = thread / X_CHUNKS;
  const bool filled = from.k + chunk * HALVES < part.last;
  DQX_UNROLL
  for (int n = 0; n < Tile::x_copies; ++n) {
    const int row = top + n * Tile::x_step;
    if (row >= Tile::height) break;
    copy_chunk(&stage.x[half_x_place(row, chunk)], from.x + int64_t{n} * Tile::x_step * call.depth,
               filled && part.row + row < call.rows);
  }
  const int w_chunk = thread % Tile::w_chunks, first = thread / Tile::w_chunks;
  const bool wide = part.column + w_chunk * (CHUNK * 8 / weight_bits) < call.width;
  const int64_t jump = int64_t{Tile::w_step} * call.width * weight_bits / 8;
  DQX_UNROLL
  for (int n = 0; n < Tile::w_copies; ++n) {
    const int k = first + n * Tile::w_step;
    copy_chunk(&stage.weight[half_w_place(k, w_chunk)], from.weight + n * jump,
               wide && from.k + k < part.last);
  }
  send_scales<Tile>(call, part, from, stage, thread);
  from.x += STAGE_DEPTH;
  from.weight += Tile::w_copies * jump;
  from.k += STAGE_DEPTH;
}

struct HalfColumns {
  Quad at[HALF_TILES];
};
template <int row_tiles>
struct HalfSums {
  FloatQuad at[row_tiles][HALF_TILES];
};

// A thread's weights of inputs 8 t + 4 half to 8 t + 4 half + 3 of a slice, t its place of four.
template <class T, class Tile, int weight_bits>
__device__ __forceinline__ void read_half_columns(const typename Tile::Stage& stage, int slice,
                                                  int half, int thread, HalfColumns& columns) {
  constexpr int words = weight_bits == 4 ? 1 : 2;  // of an octet
  struct alignas(4 * words) Octet {
    uint32_t word[words];
  };
  const int octet = thread / 4, four = thread % 4, word = octet * words;
  const int k = slice * SLICE + four * 8 + half * 4;
  const auto* weight = reinterpret_cast<const Octet*>(stage.weight) +
                       (half_w_place(k, word / 4) * 4 + word % 4) / words;
  Octet inputs[4];
  DQX_UNROLL
  for (int i = 0; i < 4; ++i) inputs[i] = weight[i * Tile::w_chunks * 4 / words];
  DQX_UNROLL
  for (int pair = 0; pair < 2; ++pair) {
    uint32_t wide[OCTETS];
    const Octet &first = inputs[2 * pair], &second = inputs[2 * pair + 1];
    if constexpr (weight_bits == 4) {
      Pairs<T>::widen_nibbles(first.word[0], second.word[0], wide);
    } else {
      Pairs<T>::widen_bytes(first.word[0], second.word[0], wide);
      Pairs<T>::widen_bytes(first.word[1], second.word[1], wide + 4);
    }
    DQX_UNROLL
    for (int j = 0; j < OCTETS; ++j) {
      columns.at[j / 2].word[2 * pair + j % 2] = static_cast<int>(wide[j]);
    }
  }
}

// Adds the products of one slice of a stage to the sums of the run.
template <class T, class Tile, int weight_bits, class Sums>
__device__ __forceinline__ void multiply_half_slice(const typename Tile::Stage& stage, int slice,
                                                    int warp, Sums& sums) {
  PerThread<Quad, Tile::threads> x[Tile::row_tiles], tiles[HALF_TILES];
  each_lane(warp, [&](int thread) {
    DQX_UNROLL
    for (int n = 0; n < Tile::row_tiles; ++n) {
      const int row = n * 8 + thread % 32 / 4;
      const uint4 eight = stage.x[half_x_place(row, slice * 4 + thread % 4)];
      x[n][thread] = {{static_cast<int>(eight.x), static_cast<int>(eight.y),
                       static_cast<int>(eight.z), static_cast<int>(eight.w)}};
    }
  });
  DQX_UNROLL
  for (int half = 0; half < 2; ++half) {
    each_lane(warp, [&](int thread) {
      HalfColumns columns;
      read_half_columns<T, Tile, weight_bits>(stage, slice, half, thread, columns);
      DQX_UNROLL
      for (int j = 0; j < HALF_TILES; ++j) tiles[j][thread] = columns.at[j];
    });
    DQX_UNROLL
    for (int n = 0; n < Tile::row_tiles; ++n) {
      DQX_UNROLL
      for (int j = 0; j < HALF_TILES; ++j) {
        Pairs<T>::multiply(
            warp, tiles[j],
            [&](int thread, int word) { return x[n][thread].word[half * 2 + word]; },
            [&](int thread) -> FloatQuad& { return sums[thread].at[n][j]; });
      }
    }
  }
}

// Adds the sums of a group times its scales, which came with slice `slice`, and begins new ones.
template <class Tile, class Sums>
__device__ __forceinline__ void add_group(const Linear& call, const typename Tile::Stage& stage,
                                          int slice, int warp, Sums& sums, Sums& totals) {
  each_lane(warp, [&](int thread) {
    float scales[OCTETS];
    DQX_UNROLL
    for (int j = 0; j < OCTETS; ++j) {
      scales[j] = value_at(stage.scales[slice], call.scales, thread / 4 * OCTETS + j);
    }
    DQX_UNROLL
    for (int n = 0; n < Tile::row_tiles; ++n) {
      DQX_UNROLL
      for (int j = 0; j < HALF_TILES; ++j) {
        DQX_UNROLL
        for (int c = 0; c < 4; ++c) {
          totals[thread].at[n][j].at[c] += sums[thread].at[n][j].at[c] * scales[2 * j + c / 2];
        }
        sums[thread].at[n][j] = {};
      }
    }
  });
}

// x · weight over the inputs of `part`. The last stage may be still read when it returns.
template <class T, class Tile, int weight_bits, class Totals>
__device__ __forceinline__ void half_product(const Linear& call, const void* x,
                                             const LinearWeight& weight, const Part& part,
                                             typename Tile::Stage* stages, Totals& totals) {
  const int count = (part.last - part.first + STAGE_DEPTH - 1) / STAGE_DEPTH;
  Totals run;
  PerThread<HalfSender, Tile::threads> senders;
  const auto fill = [&](int step, int stage, int thread) {
    if (step < count) {
      send_halves<Tile, weight_bits>(call, part, senders[thread], stages[stage], thread);
    }
    close_copies();
  };
  each_thread<Tile::threads>([&](int thread) {
    run[thread] = {};
    totals[thread] = {};
    senders[thread] = half_sender<Tile, weight_bits>(call, x, weight, part, thread);
  });
  each_thread<Tile::threads>([&](int thread) {
    DQX_UNROLL
    for (int step = 0; step < STAGES - 1; ++step) fill(step, step, thread);
  });
  int stage = 0, empty = STAGES - 1, group_end = (part.first / call.group + 1) * call.group;
  for (int step = 0; step < count; ++step) {
    each_thread<Tile::threads>([&](int) { wait_for_copies<STAGES - 2>(); });
    each_warp<Tile::threads>([&](int warp) {
      each_lane(warp, [&](int thread) { fill(step + STAGES - 1, empty, thread); });
      int end = part.first + step * STAGE_DEPTH, ahead = group_end;
      DQX_UNROLL
      for (int slice = 0; slice < 2; ++slice) {
        end += SLICE;
        multiply_half_slice<T, Tile, weight_bits>(stages[stage], slice, warp, run);
        if (end >= ahead || end >= part.last) {
          add_group<Tile>(call, stages[stage], slice, warp, run, totals);
        }
        if (end >= ahead) ahead += call.group;
      }
    });
    const int next = part.first + (step + 1) * STAGE_DEPTH;
    while (group_end <= next) group_end += call.group;
    stage = stage + 1 < STAGES ? stage + 1 : 0;
    empty = empty + 1 < STAGES ? empty + 1 : 0;
  }
}

template <class T, int weight_bits, bool gated, int rows>
__global__ void __launch_bounds__(HalfTiling<weight_bits, rows>::threads)
    halves_product(Linear call, const void* x, LinearWeight weight, LinearWeight up,
                   const void* bias, void* y, float* partial, int part_depth) {
  using Tile = HalfTiling<weight_bits, rows>;
  using Totals = PerThread<HalfSums<Tile::row_tiles>, Tile::threads>;
  __shared__ typename Tile::Stage stages[STAGES];
  Totals totals;
  [[maybe_unused]] Totals others;
  const int first = static_cast<int>(blockIdx.z) * part_depth;
  const Part part{int64_t{blockIdx.x} * rows, static_cast<int>(blockIdx.y) * Tile::columns, first,
                  first + part_depth < call.depth ? first + part_depth : call.depth};
  half_product<T, Tile, weight_bits>(call, x, weight, part, stages, totals);
  if constexpr (gated) half_product<T, Tile, weight_bits>(call, x, up, part, stages, others);
  each_thread<Tile::threads>([&](int thread) {
    const int column = part.column + thread / 4 * OCTETS;
    if (column >= call.width) return;
    DQX_UNROLL
    for (int n = 0; n < Tile::row_tiles; ++n) {
      DQX_UNROLL
      for (int odd = 0; odd < 2; ++odd) {
        const int64_t row = part.row + n * 8 + thread % 4 * 2 + odd;
        float value[OCTETS], other[OCTETS];
        DQX_UNROLL
        for (int j = 0; j < OCTETS; ++j) {
          value[j] = totals[thread].at[n][j / 2].at[j % 2 * 2 + odd];
          if constexpr (gated) other[j] = others[thread].at[n][j / 2].at[j % 2 * 2 + odd];
        }
        if (row < call.rows) {
          const int64_t place = row * call.width + column;
          store_outputs<gated>(call, bias, y, partial, place, column, value, other);
        }
      }
    }
  });
}

}  // namespace
}  // namespace dqx
