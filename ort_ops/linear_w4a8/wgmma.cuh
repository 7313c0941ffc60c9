// Quantized linears of channel formats on the tensor cores of SM 90 (wgmma).
//
// The product is turned: y^T = weight^T · x^T. Columns of weights are the rows of a product, and come
// from registers; codes of x come from shared memory, 128 rows of them at once, so that a weight is
// widened once for 128 rows and no instruction is spent on x. A warp has 32 columns of y: a thread
// reads four columns of four inputs, turns them round, and has a register each of the rows lane / 4
// and lane / 4 + 8 of both tiles of its group. Which column is which row is free; so columns
// 4 (lane / 4) … + 3 are a thread's own, and it stores four in a row.
//
// Copies and their layout are those of tensor_core.cuh, whose rows of x are just as wgmma reads rows
// of 64 bytes. While one slice is multiplied the next is widened.
#pragma once

#include "../warpgroup.cuh"
#include "tensor_core.cuh"

namespace dqx {
namespace {

constexpr int GROUP_COLUMNS = 128, FOUR = 4;
constexpr int UNDER_WAY = 4;         // stages that are sent ahead
constexpr int SLOTS = UNDER_WAY + 2;  // one more is multiplied, and the one before it still may be

template <int weight_bits, int rows>
struct GroupTiling {
  static constexpr int groups = weight_bits == 4 ? 2 : 1, threads = GROUP * groups;
  static constexpr int columns = GROUP_COLUMNS * groups, height = rows;
  static constexpr int x_chunks = STAGE_DEPTH / CHUNK, w_chunks = columns * weight_bits / 8 / CHUNK;
  static constexpr int x_step = threads / x_chunks, x_copies = (rows + x_step - 1) / x_step;
  static constexpr int w_step = threads / w_chunks, w_copies = STAGE_DEPTH / w_step;
  static_assert(w_chunks == 8, "a row of weights meets every bank once");
  struct alignas(8 * STAGE_DEPTH) Stage {
    uint4 x[rows * x_chunks];
    uint4 weight[STAGE_DEPTH * w_chunks];
    alignas(16) int8_t steps[2][columns];  // of both slices
  };
  static constexpr int room = SLOTS * static_cast<int>(sizeof(Stage));
};

// Four inputs of 4 columns of 4 bits, as a register each column. The columns of the second byte are
// multiplied where they stand: what the lower one carries stays in the byte between.
__device__ __forceinline__ void turn_four(const uint32_t (&inputs)[4], uint32_t steps,
                                          uint32_t (&columns)[FOUR]) {
  const uint32_t even = __byte_perm(inputs[0], inputs[2], 0x5410);
  const uint32_t odd = __byte_perm(inputs[1], inputs[3], 0x5410);
  DQX_UNROLL
  for (int j = 0; j < FOUR; ++j) {
    const bool second = j >= 2;
    const uint32_t step = steps >> j * 8 & 255;
    const uint32_t mask = second ? 0x0f000f00u : 0x000f000fu;
    const uint32_t eight = second ? 0x08000800u : 0x00080008u;
    const uint32_t base = (second ? 0x00100000u : 0x10001000u) - step * eight;
    const uint32_t a = masked_xor(even >> j % 2 * 4, mask, eight) * step + base;
    const uint32_t b = masked_xor(odd >> j % 2 * 4, mask, eight) * step + base;
    columns[j] = __byte_perm(a, b, second ? 0x7351 : 0x6240);
  }
}

// A thread's weights of a slice: rows lane / 4 and lane / 4 + 8 of both tiles, as wgmma takes them.
struct SliceWeights {
  Quad tile[2];
};
struct StageWeights {
  SliceWeights slice[2];
};

// The first of a thread's four columns, in its block.
__device__ __forceinline__ int four_columns(int thread) {
  return thread / 32 * 32 + thread % 32 / 4 * FOUR;
}

template <class Tile, int weight_bits>
__device__ __forceinline__ void widen(const typename Tile::Stage& stage, int slice, int thread,
                                      SliceWeights& to) {
  using Word = std::conditional_t<weight_bits == 4, uint16_t, uint32_t>;  // four columns
  constexpr int in_chunk = CHUNK / static_cast<int>(sizeof(Word));
  const int four = four_columns(thread) / FOUR, k = slice * SLICE + thread % 4 * 4;
  const auto* weight = reinterpret_cast<const Word*>(stage.weight + w_place(k, four / in_chunk)) +
                       four % in_chunk;
  [[maybe_unused]] uint32_t steps = 0;
  if constexpr (weight_bits == 4) {
    steps = reinterpret_cast<const uint32_t*>(stage.steps[slice])[four];
  }
  DQX_UNROLL
  for (int half = 0; half < 2; ++half) {
    uint32_t inputs[4], columns[FOUR];
    DQX_UNROLL
    for (int i = 0; i < 4; ++i) inputs[i] = weight[(half * 16 + i) * Tile::w_chunks * in_chunk];
    if constexpr (weight_bits == 4) {
      turn_four(inputs, steps, columns);
    } else {
      turn(inputs, columns);
    }
    DQX_UNROLL
    for (int j = 0; j < FOUR; ++j) to.tile[j / 2].word[j % 2 + 2 * half] = static_cast<int>(columns[j]);
  }
}

// A thread's sums: of both tiles, four of each 8 rows of x.
template <int rows>
struct GroupSums {
  int tile[2][rows / 2];
};

// x · weight over the inputs of `part`. All products have been waited for when it returns.
template <class Tile, int weight_bits, class Totals>
__device__ __forceinline__ void group_product(const Linear& call, const Rounded& x,
                                              const LinearWeight& weight, const Part& part,
                                              typename Tile::Stage* stages, Totals& totals) {
  const int count = (part.last - part.first + STAGE_DEPTH - 1) / STAGE_DEPTH;
  PerThread<Sender, Tile::threads> senders;
  PerThread<StageWeights, Tile::threads> weights;
  const auto fill = [&](int step, int slot, int thread) {
    if (step < count) {
      send<Tile, weight_bits, weight_bits == 4>(call, part, senders[thread], stages[slot], thread);
    }
    close_copies();
  };
  each_thread<Tile::threads>([&](int thread) {
    totals[thread] = {};
    senders[thread] = sender<Tile, weight_bits>(call, x.codes, weight, part, thread);
  });
  each_thread<Tile::threads>([&](int thread) {
    DQX_UNROLL
    for (int step = 0; step < UNDER_WAY; ++step) fill(step, step, thread);
  });
  // a part has inputs; a loop that may be left out would make ptxas wait for each product alone
  int step = 0, slot = 0, empty = UNDER_WAY;
  do {
    each_thread<Tile::threads>([&](int) {
      wait_for_copies<UNDER_WAY - 1>();
      hand_over();
    });
    each_group<Tile::threads>([&](int group) {
      each_member(group, [&](int thread) { fill(step + UNDER_WAY, empty, thread); });
      const Described rows = described<STAGE_DEPTH>(stages[slot].x);
      DQX_UNROLL
      for (int slice = 0; slice < 2; ++slice) {
        each_member(group, [&](int thread) {
          widen<Tile, weight_bits>(stages[slot], slice, thread, weights[thread].slice[slice]);
        });
        open_products();
        DQX_UNROLL
        for (int tile = 0; tile < 2; ++tile) {
          multiply_group<Tile::height>(
              group,
              [&weights, slice, tile](int thread) -> Quad& {
                return weights[thread].slice[slice].tile[tile];
              },
              moved(rows, slice * SLICE),
              [&totals, tile](int thread) -> int(&)[Tile::height / 2] {
                return totals[thread].tile[tile];
              });
        }
        close_products();
        wait_for_products<1>();
      }
    });
    slot = slot + 1 < SLOTS ? slot + 1 : 0;
    empty = empty + 1 < SLOTS ? empty + 1 : 0;
  } while (++step < count);
  each_group<Tile::threads>([&](int group) {
    wait_for_products<0>();
    each_member(group, [&](int thread) {
      for (auto& sums : totals[thread].tile) settle(sums);
    });
  });
}

// Of row `odd` of two in the 8 rows of x number `eight`: a thread's four columns.
template <int rows>
__device__ __forceinline__ void sums_of(const GroupSums<rows>& totals, int eight, int odd,
                                        int (&sums)[FOUR]) {
  DQX_UNROLL
  for (int j = 0; j < FOUR; ++j) sums[j] = totals.tile[j / 2][eight * 4 + j % 2 * 2 + odd];
}

__device__ __forceinline__ void scale(const int (&sums)[FOUR], const float (&scales)[FOUR],
                                      float x_scale, float (&value)[FOUR]) {
  DQX_UNROLL
  for (int j = 0; j < FOUR; ++j) {
    value[j] = __fmul_rn(static_cast<float>(sums[j]), scales[j] * x_scale);
  }
}

// One tile of y, or of the integers that this part of the depth adds to it: partial (part, gate or
// up, row, column).
template <class Tile, bool gated, class Totals>
__device__ __forceinline__ void store_group(const Linear& call, const Rounded& x,
                                            const LinearWeight& weight, const LinearWeight& up,
                                            const Part& part, const void* bias, void* y, int* partial,
                                            Totals& totals, [[maybe_unused]] Totals& others) {
  const int64_t matrix = call.rows * call.width;
  const int64_t first = int64_t{blockIdx.z} * (gated ? 2 : 1) * matrix;
  each_thread<Tile::threads>([&](int thread) {
    const int column = part.column + four_columns(thread);
    if (column >= call.width) return;
    float scales[FOUR], other_scales[FOUR];
    read_scales(call, weight, 0, column, scales);
    if constexpr (gated) read_scales(call, up, 0, column, other_scales);
    DQX_UNROLL
    for (int i = 0; i < Tile::height / 4; ++i) {
      const int64_t row = part.row + i / 2 * 8 + thread % 4 * 2 + i % 2;
      if (row >= call.rows) continue;
      const int64_t place = row * call.width + column;
      int sums[FOUR], other_sums[FOUR];
      sums_of(totals[thread], i / 2, i % 2, sums);
      if constexpr (gated) sums_of(others[thread], i / 2, i % 2, other_sums);
      if (partial) {
        DQX_UNROLL
        for (int j = 0; j < FOUR; ++j) {
          partial[first + place + j] = sums[j];
          if constexpr (gated) partial[first + matrix + place + j] = other_sums[j];
        }
        continue;
      }
      float value[FOUR], other[FOUR];
      scale(sums, scales, x.scales[row], value);
      if constexpr (gated) scale(other_sums, other_scales, x.scales[row], other);
      store_outputs<gated>(call, bias, y, nullptr, place, column, value, other);
    }
  });
}

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DQX_NO_WGMMA
#endif

template <int weight_bits, bool gated, int rows>
__global__ void __launch_bounds__(GroupTiling<weight_bits, rows>::threads)
    group_products(Linear call, Rounded x, LinearWeight weight, LinearWeight up, const void* bias,
                   void* y, int* partial, int part_depth) {
#ifdef DQX_NO_WGMMA
  __trap();  // fits_wgmma lets no other GPU come here
#else
  using Tile = GroupTiling<weight_bits, rows>;
  DQX_SLOTS(typename Tile::Stage, stages, SLOTS);
  PerThread<GroupSums<rows>, Tile::threads> totals;
  [[maybe_unused]] PerThread<GroupSums<rows>, Tile::threads> others;
  const int first = static_cast<int>(blockIdx.z) * part_depth;
  const Part part{int64_t{blockIdx.x} * rows, static_cast<int>(blockIdx.y) * Tile::columns, first,
                  first + part_depth < call.depth ? first + part_depth : call.depth};
  group_product<Tile, weight_bits>(call, x, weight, part, stages, totals);
  if constexpr (gated) group_product<Tile, weight_bits>(call, x, up, part, stages, others);
  store_group<Tile, gated>(call, x, weight, up, part, bias, y, partial, totals, others);
#endif
}

}  // namespace
}  // namespace dqx
