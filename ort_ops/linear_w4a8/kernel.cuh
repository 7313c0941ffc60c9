// Multiplies rounded rows by quantized weights of any shape, by dp4a; op.py says what it computes.
#pragma once

#include "values.cuh"

namespace dqx {
namespace {

// A block computes a tile of y, TILE_DEPTH inputs at a time; a thread 4 rows of it by 4 columns.
constexpr int TILE_ROWS = 32, TILE_COLUMNS = 64, TILE_DEPTH = 32, SIDE = 4, QUADS = TILE_DEPTH / 4;
constexpr int PRODUCT_THREADS = TILE_ROWS * TILE_COLUMNS / (SIDE * SIDE);

// One integer weight: the code of input k and output n, times its step where there are steps. The
// product fits a byte too (op.py).
template <int weight_bits>
__device__ __forceinline__ int weight_at(const Linear& call, const LinearWeight& weight, int k,
                                         int n) {
  const int64_t place = int64_t{k} * call.width + n;
  if constexpr (weight_bits == 8) return static_cast<const int8_t*>(weight.codes)[place];
  const int pair = static_cast<const uint8_t*>(weight.codes)[place / 2];
  const int code = ((pair >> (place % 2 * 4) & 15) ^ 8) - 8;
  return weight.steps ? code * weight.steps[int64_t{k / call.group} * call.width + n] : code;
}

__device__ __forceinline__ float scale_at(const Linear& call, const LinearWeight& weight, int k,
                                          int n) {
  return value_at(weight.scales, call.scales,
                  call.channel ? n : int64_t{k / call.group} * call.width + n);
}

struct Tiles {
  int x[TILE_ROWS][QUADS];  // four inputs each
  alignas(16) int weight[QUADS][TILE_COLUMNS];
};

template <class T>
struct Square {
  T at[SIDE][SIDE];
};
using Sums = PerThread<Square<int>, PRODUCT_THREADS>;
using Totals = PerThread<Square<float>, PRODUCT_THREADS>;

__device__ __forceinline__ int64_t row_of(int thread) {
  return int64_t{blockIdx.x} * TILE_ROWS + thread / (TILE_COLUMNS / SIDE) * SIDE;
}

__device__ __forceinline__ int column_of(int thread) {
  return static_cast<int>(blockIdx.y) * TILE_COLUMNS + thread % (TILE_COLUMNS / SIDE) * SIDE;
}

// Fills the tiles with the inputs from `first` to `last`, and zeros behind them.
template <int weight_bits>
__device__ __forceinline__ void load(const Linear& call, const Rounded& x,
                                     const LinearWeight& weight, int first, int last,
                                     Tiles& tiles) {
  each_thread<PRODUCT_THREADS>([&](int thread) {
    for (int i = thread; i < TILE_ROWS * QUADS; i += PRODUCT_THREADS) {
      const int64_t row = int64_t{blockIdx.x} * TILE_ROWS + i / QUADS;
      unsigned four = 0;
      for (int byte = 0; byte < 4; ++byte) {
        const int k = first + i % QUADS * 4 + byte;
        const int code = row < call.rows && k < last ? x.codes[row * call.depth + k] : 0;
        four |= (code & 255u) << 8 * byte;
      }
      tiles.x[i / QUADS][i % QUADS] = static_cast<int>(four);
    }
    for (int i = thread; i < QUADS * TILE_COLUMNS; i += PRODUCT_THREADS) {
      const int n = static_cast<int>(blockIdx.y) * TILE_COLUMNS + i % TILE_COLUMNS;
      unsigned four = 0;
      for (int byte = 0; byte < 4; ++byte) {
        const int k = first + i / TILE_COLUMNS * 4 + byte;
        const bool inside = n < call.width && k < last;
        const int code = inside ? weight_at<weight_bits>(call, weight, k, n) : 0;
        four |= (code & 255u) << 8 * byte;
      }
      tiles.weight[i / TILE_COLUMNS][i % TILE_COLUMNS] = static_cast<int>(four);
    }
  });
}

__device__ __forceinline__ void add_products(const Tiles& tiles, Sums& sums) {
  each_thread<PRODUCT_THREADS>([&](int thread) {
    const int top = thread / (TILE_COLUMNS / SIDE) * SIDE;
    const int left = thread % (TILE_COLUMNS / SIDE) * SIDE;
    for (int quad = 0; quad < QUADS; ++quad) {
      DQX_UNROLL
      for (int r = 0; r < SIDE; ++r) {
        DQX_UNROLL
        for (int c = 0; c < SIDE; ++c) {
          int& sum = sums[thread].at[r][c];
          sum = __dp4a(tiles.x[top + r][quad], tiles.weight[quad][left + c], sum);
        }
      }
    }
  });
}

// Adds sums over a run that begins at `first`, times its scales.
__device__ __forceinline__ void add_scaled(const Linear& call, const Rounded& x,
                                           const LinearWeight& weight, int first, Sums& sums,
                                           Totals& totals) {
  each_thread<PRODUCT_THREADS>([&](int thread) {
    const int runs = call.depth / call.activation_group;
    DQX_UNROLL
    for (int r = 0; r < SIDE; ++r) {
      const int64_t row = row_of(thread) + r;
      if (row >= call.rows) return;
      const float scale = x.scales[row * runs + first / call.activation_group];
      DQX_UNROLL
      for (int c = 0; c < SIDE; ++c) {
        const int n = column_of(thread) + c;
        if (n >= call.width) break;
        const float sum = static_cast<float>(sums[thread].at[r][c]);
        totals[thread].at[r][c] += sum * (scale_at(call, weight, first, n) * scale);
      }
    }
  });
}

// The block's tile of x · weight.
template <int weight_bits>
__device__ __forceinline__ void product(const Linear& call, const Rounded& x,
                                         const LinearWeight& weight, Tiles& tiles,
                                         Totals& totals) {
  Sums sums;
  each_thread<PRODUCT_THREADS>([&](int thread) { totals[thread] = {}; });
  for (int first = 0, last; first < call.depth; first = last) {
    last = run_end(call, first);
    each_thread<PRODUCT_THREADS>([&](int thread) { sums[thread] = {}; });
    for (int k = first; k < last; k += TILE_DEPTH) {
      load<weight_bits>(call, x, weight, k, last, tiles);
      add_products(tiles, sums);
    }
    add_scaled(call, x, weight, first, sums, totals);
  }
}

// The block's tile of y.
template <bool gated>
__device__ __forceinline__ void store_square(const Linear& call, const void* bias, void* y,
                                             Totals& totals, [[maybe_unused]] Totals& others) {
  each_thread<PRODUCT_THREADS>([&](int thread) {
    DQX_UNROLL
    for (int r = 0; r < SIDE; ++r) {
      const int64_t row = row_of(thread) + r;
      if (row >= call.rows) return;
      DQX_UNROLL
      for (int c = 0; c < SIDE; ++c) {
        const int n = column_of(thread) + c;
        if (n >= call.width) break;
        float value = totals[thread].at[r][c];
        if constexpr (gated) value = silu(value) * others[thread].at[r][c];
        if (bias) value += value_at(bias, call.type, n);
        store(y, call.type, row * call.width + n, value);
      }
    }
  });
}

template <int weight_bits, bool gated>
__global__ void __launch_bounds__(PRODUCT_THREADS, 4)
    linear_product(Linear call, Rounded x, LinearWeight weight, LinearWeight up, const void* bias,
                   void* y) {
  __shared__ Tiles tiles;
  Totals totals, others;
  product<weight_bits>(call, x, weight, tiles, totals);
  if constexpr (gated) product<weight_bits>(call, x, up, tiles, others);
  store_square<gated>(call, bias, y, totals, others);
}

}  // namespace
}  // namespace dqx
