// Linears of quantized weights and inputs that are not rounded, of any shape and type: products of
// floats, one by one.
#pragma once

#include "kernel.cuh"

namespace dqx {
namespace {

struct FloatTiles {
  float x[TILE_ROWS][TILE_DEPTH + 1];
  alignas(16) float weight[TILE_DEPTH][TILE_COLUMNS];
};

// Fills the tiles with the inputs from `first` on, and zeros behind the last.
template <int weight_bits>
__device__ __forceinline__ void load_floats(const Linear& call, const void* x,
                                            const LinearWeight& weight, int first,
                                            FloatTiles& tiles) {
  each_thread<PRODUCT_THREADS>([&](int thread) {
    for (int i = thread; i < TILE_ROWS * TILE_DEPTH; i += PRODUCT_THREADS) {
      const int64_t row = int64_t{blockIdx.x} * TILE_ROWS + i / TILE_DEPTH;
      const int k = first + i % TILE_DEPTH;
      const bool inside = row < call.rows && k < call.depth;
      tiles.x[i / TILE_DEPTH][i % TILE_DEPTH] =
          inside ? value_at(x, call.type, row * call.depth + k) : 0;
    }
    for (int i = thread; i < TILE_DEPTH * TILE_COLUMNS; i += PRODUCT_THREADS) {
      const int n = static_cast<int>(blockIdx.y) * TILE_COLUMNS + i % TILE_COLUMNS;
      const int k = first + i / TILE_COLUMNS;
      float value = 0;
      if (n < call.width && k < call.depth) {
        value = static_cast<float>(weight_at<weight_bits>(call, weight, k, n)) *
                scale_at(call, weight, k, n);
      }
      tiles.weight[i / TILE_COLUMNS][i % TILE_COLUMNS] = value;
    }
  });
}

// The block's tile of x · weight.
template <int weight_bits>
__device__ __forceinline__ void float_product(const Linear& call, const void* x,
                                              const LinearWeight& weight, FloatTiles& tiles,
                                              Totals& totals) {
  each_thread<PRODUCT_THREADS>([&](int thread) { totals[thread] = {}; });
  for (int first = 0; first < call.depth; first += TILE_DEPTH) {
    load_floats<weight_bits>(call, x, weight, first, tiles);
    each_thread<PRODUCT_THREADS>([&](int thread) {
      const int top = thread / (TILE_COLUMNS / SIDE) * SIDE;
      const int left = thread % (TILE_COLUMNS / SIDE) * SIDE;
      for (int k = 0; k < TILE_DEPTH; ++k) {
        DQX_UNROLL
        for (int r = 0; r < SIDE; ++r) {
          DQX_UNROLL
          for (int c = 0; c < SIDE; ++c) {
            totals[thread].at[r][c] += tiles.x[top + r][k] * tiles.weight[k][left + c];
          }
        }
      }
    });
  }
}

// Four blocks a multiprocessor: with as many as memory would let in, registers are spilled.
template <int weight_bits, bool gated>
__global__ void __launch_bounds__(PRODUCT_THREADS, 4)
    floats_product(Linear call, const void* x, LinearWeight weight, LinearWeight up,
                   const void* bias, void* y) {
  __shared__ FloatTiles tiles;
  Totals totals, others;
  float_product<weight_bits>(call, x, weight, tiles, totals);
  if constexpr (gated) float_product<weight_bits>(call, x, up, tiles, others);
  store_square<gated>(call, bias, y, totals, others);
}

}  // namespace
}  // namespace dqx
