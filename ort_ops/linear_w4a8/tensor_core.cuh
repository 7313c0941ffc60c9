// Quantized linears on the integer tensor cores of SM 80 and later (mma.sync m16n8k32).
//
// A block computes ROWS rows of y by 64 columns a warp, for one part of the depth. Tiles of 64
// inputs arrive by cp.async, STAGES of them at once, in the layout that ONNX has: codes (depth,
// width), two of 4 bits a byte. The tensor cores want four inputs of one column in a register. So
// a thread reads eight columns of four inputs, one octet, and turns them round by byte
// permutations; mma tile j then is the j-th column of each of the warp's eight octets. What a
// thread has summed at the end are 16 columns in a row, which it stores at once.
//
// 4-bit codes become bytes two at a time: c + 8 stands in each half of a register, and one
// multiply-add makes (c + 8) * step + 4096 - 8 * step of both, whose low byte is c * step. A step
// may be taken modulo 256.
#pragma once

#include "../warp.cuh"
#include "values.cuh"

namespace dqx {
namespace {

constexpr int WARP_COLUMNS = 64, OCTETS = 8, SLICE = 32, STAGE_DEPTH = 2 * SLICE, STAGES = 3;
constexpr int CHUNK = 16;  // bytes that cp.async moves
// Blocks that share an SM, 0: as ptxas thinks best. For SM 90 it makes room for more than fit, and
// spills.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
constexpr int LEAST_BLOCKS = 2;
#else
constexpr int LEAST_BLOCKS = 0;
#endif

template <int weight_bits, bool channel, int rows, int warps>
struct Tiling {
  static constexpr int threads = 32 * warps, columns = WARP_COLUMNS * warps;
  static constexpr int x_chunks = STAGE_DEPTH / CHUNK;             // of a row of x
  static constexpr int w_chunks = columns * weight_bits / 8 / CHUNK;  // of an input's weights
  static constexpr int height = rows, row_tiles = rows / 16;
  // a thread copies the same chunk of several rows, and of several inputs' weights
  static constexpr int x_step = threads / x_chunks, x_copies = (rows + x_step - 1) / x_step;
  static constexpr int w_step = threads / w_chunks, w_copies = STAGE_DEPTH / w_step;
  static_assert(w_chunks == 8, "a row of weights meets every bank once");
  struct alignas(128) Stage {
    uint4 x[rows * x_chunks];
    uint4 weight[STAGE_DEPTH * w_chunks];
    alignas(16) int8_t steps[2][columns];  // of both slices
  };
};

// What one block works on.
struct Part {
  int64_t row;       // the first
  int column;        // the first
  int first, last;   // inputs
};

// Where chunk `chunk` of row `row` of x lies, so that eight rows at one place meet no bank twice.
__device__ __forceinline__ int x_place(int row, int chunk) {
  return row * (STAGE_DEPTH / CHUNK) + (chunk ^ (row >> 1 & 3));
}

// Likewise of the weights of input `k`; threads of a warp read inputs that are 4 apart.
__device__ __forceinline__ int w_place(int k, int chunk) {
  return k * 8 + (chunk ^ 2 * (k >> 2 & 3));
}

// What a thread copies, and from where; it moves on by one stage at a time.
struct Sender {
  const int8_t* x;
  const uint8_t* weight;
  const int8_t* steps;
  int k;  // the stage's first input
};

template <class Tile, int weight_bits>
__device__ __forceinline__ Sender sender(const Linear& call, const int8_t* x,
                                         const LinearWeight& weight, const Part& part,
                                         int thread) {
  const int64_t row = part.row + thread / Tile::x_chunks;
  const int input = part.first + thread / Tile::w_chunks;
  const int column = part.column + thread % Tile::w_chunks * (CHUNK * 8 / weight_bits);
  return {x + row * call.depth + part.first + thread % Tile::x_chunks * CHUNK,
          static_cast<const uint8_t*>(weight.codes) +
              (int64_t{input} * call.width + column) * weight_bits / 8,
          weight.steps, part.first};
}

// Sends for one stage; zeros where there is nothing.
template <class Tile, int weight_bits, bool stepped>
__device__ __forceinline__ void send(const Linear& call, const Part& part, Sender& from,
                                     typename Tile::Stage& stage, int thread) {
  const int chunk = thread % Tile::x_chunks, top = thread / Tile::x_chunks;
  const bool filled = from.k + chunk * CHUNK < part.last;
  DQX_UNROLL
  for (int n = 0; n < Tile::x_copies; ++n) {
    const int row = top + n * Tile::x_step;
    if (row >= Tile::height) break;
    copy_chunk(&stage.x[x_place(row, chunk)], from.x + int64_t{n} * Tile::x_step * call.depth,
               filled && part.row + row < call.rows);
  }
  const int w_chunk = thread % Tile::w_chunks, first = thread / Tile::w_chunks;
  const bool wide = part.column + w_chunk * (CHUNK * 8 / weight_bits) < call.width;
  const int64_t jump = int64_t{Tile::w_step} * call.width * weight_bits / 8;
  DQX_UNROLL
  for (int n = 0; n < Tile::w_copies; ++n) {
    const int k = first + n * Tile::w_step;
    copy_chunk(&stage.weight[w_place(k, w_chunk)], from.weight + n * jump,
               wide && from.k + k < part.last);
  }
  if constexpr (stepped) {
    constexpr int chunks = Tile::columns / CHUNK;
    static_assert(2 * chunks <= Tile::threads, "one chunk a thread");
    if (thread < 2 * chunks) {
      const int k = from.k + thread / chunks * SLICE;
      const int column = part.column + thread % chunks * CHUNK;
      copy_chunk(&stage.steps[thread / chunks][thread % chunks * CHUNK],
                 from.steps + int64_t{k / call.group} * call.width + column,
                 k < part.last && column < call.width);
    }
  }
  from.x += STAGE_DEPTH;
  from.weight += Tile::w_copies * jump;
  from.k += STAGE_DEPTH;
}

// Four inputs of 8 columns, a register each input, as a register each column: 4 bits.
__device__ __forceinline__ void turn(const uint32_t (&inputs)[4], const uint32_t (&steps)[OCTETS],
                                     uint32_t (&columns)[OCTETS]) {
  DQX_UNROLL
  for (int byte = 0; byte < 4; ++byte) {
    const unsigned pick = static_cast<unsigned>(byte | (4 + byte) << 8);  // this byte of both, each in a half
    const uint32_t even = __byte_perm(inputs[0], inputs[2], pick | pick << 4);
    const uint32_t odd = __byte_perm(inputs[1], inputs[3], pick | pick << 4);
    DQX_UNROLL
    for (int high = 0; high < 2; ++high) {
      const uint32_t step = steps[2 * byte + high];
      const uint32_t base = 0x10001000u - step * 0x00080008u;
      const uint32_t a = masked_xor(even >> 4 * high, 0x000f000fu, 0x00080008u);
      const uint32_t b = masked_xor(odd >> 4 * high, 0x000f000fu, 0x00080008u);
      columns[2 * byte + high] =
          __byte_perm(a * step + base, b * step + base, 0x6240);
    }
  }
}

// The same of 4 columns of 8 bits.
__device__ __forceinline__ void turn(const uint32_t (&inputs)[4], uint32_t* columns) {
  DQX_UNROLL
  for (int pair = 0; pair < 2; ++pair) {
    const unsigned pick = pair ? 0x7362 : 0x5140;
    const uint32_t a = __byte_perm(inputs[0], inputs[1], pick);
    const uint32_t b = __byte_perm(inputs[2], inputs[3], pick);
    columns[2 * pair] = __byte_perm(a, b, 0x5410);
    columns[2 * pair + 1] = __byte_perm(a, b, 0x7632);
  }
}

// The weights of one thread in a slice of 32 inputs, as mma takes them.
struct Columns {
  uint32_t at[OCTETS][2];
};

template <class Tile, int weight_bits, bool stepped>
__device__ __forceinline__ void read_columns(const typename Tile::Stage& stage, int slice,
                                             int thread, Columns& columns) {
  const int lane = thread % 32, octet = lane / 4, four = lane % 4, warp = thread / 32;
  constexpr int words = weight_bits == 4 ? 1 : 2;  // of an octet
  const int word = (warp * OCTETS + octet) * words;
  const auto* weight = reinterpret_cast<const uint32_t*>(stage.weight) +
                       w_place(slice * SLICE + four * 4, word / 4) * 4 + word % 4;
  uint32_t steps[OCTETS];
  if constexpr (stepped) {
    const auto* pair = reinterpret_cast<const uint32_t*>(
        &stage.steps[slice][warp * WARP_COLUMNS + octet * OCTETS]);
    DQX_UNROLL
    for (int j = 0; j < OCTETS; ++j) steps[j] = pair[j / 4] >> j % 4 * 8 & 255;
  } else {
    DQX_UNROLL
    for (int j = 0; j < OCTETS; ++j) steps[j] = 1;
  }
  DQX_UNROLL
  for (int half = 0; half < 2; ++half) {
    uint32_t inputs[words][4], turned[OCTETS];
    DQX_UNROLL
    for (int i = 0; i < 4; ++i) {
      DQX_UNROLL
      for (int part = 0; part < words; ++part) {
        inputs[part][i] = weight[(half * 16 + i) * Tile::w_chunks * 4 + part];
      }
    }
    if constexpr (weight_bits == 4) {
      turn(inputs[0], steps, turned);
    } else {
      turn(inputs[0], turned);
      turn(inputs[1], turned + 4);
    }
    DQX_UNROLL
    for (int j = 0; j < OCTETS; ++j) columns.at[j][half] = turned[j];
  }
}

template <int row_tiles>
struct Accumulators {
  Quad at[row_tiles][OCTETS];
};
template <int row_tiles>
struct FloatAccumulators {
  float at[row_tiles][OCTETS][4];
};

// Adds the products of one slice of a stage; sums(thread) is what a thread has.
template <class Tile, int weight_bits, bool stepped, class Sums>
__device__ __forceinline__ void multiply_slice(const typename Tile::Stage& stage, int slice,
                                               int warp, const Sums& sums) {
  PerThread<Columns, Tile::threads> columns;
  PerThread<const void*, Tile::threads> places;
  PerThread<Quad, Tile::threads> x;
  each_lane(warp, [&](int thread) {
    read_columns<Tile, weight_bits, stepped>(stage, slice, thread, columns[thread]);
  });
  DQX_UNROLL
  for (int tile = 0; tile < Tile::row_tiles; ++tile) {
    each_lane(warp, [&](int thread) {
      const int lane = thread % 32, row = tile * 16 + lane % 16;
      places[thread] = &stage.x[x_place(row, slice * 2 + lane / 16)];
    });
    load_matrices(warp, places, x);
    DQX_UNROLL
    for (int j = 0; j < OCTETS; ++j) {
      multiply_add(
          warp, x, [&](int thread, int half) { return columns[thread].at[j][half]; },
          [&](int thread) -> Quad& { return sums(thread).at[tile][j]; });
    }
  }
}

// Of element c of a thread's sums in row tile `tile` and mma tile j: its row and column.
__device__ __forceinline__ int row_in_block(int thread, int tile, int c) {
  return tile * 16 + c / 2 * 8 + thread % 32 / 4;
}

__device__ __forceinline__ int column_in_block(int thread, int c, int j) {
  return thread / 32 * WARP_COLUMNS + thread % 4 * 16 + c % 2 * 8 + j;
}

// Scales of the run of inputs at `first` for the columns from `column` on.
template <int count>
__device__ __forceinline__ void read_scales(const Linear& call, const LinearWeight& weight,
                                            int first, int column, float (&scales)[count]) {
  const int64_t place = column + (call.channel ? 0 : int64_t{first / call.group} * call.width);
  read_row(weight.scales, call.scales, place, scales);
}

// A thread's products: integers as long as all of a row share a scale, else floats.
template <bool channel, int row_tiles>
struct Products {
  FloatAccumulators<row_tiles> floats;
};
template <int row_tiles>
struct Products<true, row_tiles> {
  Accumulators<row_tiles> sums;
};

// Adds the sums over a run that began at `first`, times its scales, and begins new ones.
template <class Tile, class Sums, class Totals>
__device__ __forceinline__ void add_run(const Linear& call, const Rounded& x,
                                        const LinearWeight& weight, const Part& part, int first,
                                        int warp, Sums& sums, Totals& totals) {
  each_lane(warp, [&](int thread) {
    const int64_t runs = call.depth / call.activation_group;
    DQX_UNROLL
    for (int odd = 0; odd < 2; ++odd) {
      const int column = part.column + column_in_block(thread, odd, 0);
      if (column >= call.width) break;
      float scales[OCTETS];
      read_scales(call, weight, first, column, scales);
      DQX_UNROLL
      for (int tile = 0; tile < Tile::row_tiles; ++tile) {
        DQX_UNROLL
        for (int c = odd; c < 4; c += 2) {
          const int64_t row = part.row + row_in_block(thread, tile, c);
          const int64_t place = row * runs + first / call.activation_group;
          const float scale = row < call.rows ? x.scales[place] : 0;
          DQX_UNROLL
          for (int j = 0; j < OCTETS; ++j) {
            int& sum = sums[thread].at[tile][j].word[c];
            totals[thread].floats.at[tile][j][c] += static_cast<float>(sum) * (scales[j] * scale);
            sum = 0;
          }
        }
      }
    }
  });
}

// x · weight over the inputs of `part`. The last stage may be still read when it returns.
template <class Tile, int weight_bits, bool channel, class Totals>
__device__ __forceinline__ void tile_product(const Linear& call, const Rounded& x,
                                             const LinearWeight& weight, const Part& part,
                                             typename Tile::Stage* stages, Totals& totals) {
  constexpr bool stepped = weight_bits == 4 && channel;
  const int count = (part.last - part.first + STAGE_DEPTH - 1) / STAGE_DEPTH;
  [[maybe_unused]] PerThread<Accumulators<Tile::row_tiles>, Tile::threads> run;
  PerThread<Sender, Tile::threads> senders;
  const auto fill = [&](int step, int stage, int thread) {
    if (step < count) {
      send<Tile, weight_bits, stepped>(call, part, senders[thread], stages[stage], thread);
    }
    close_copies();
  };
  each_thread<Tile::threads>([&](int thread) {
    if constexpr (!channel) run[thread] = {};
    totals[thread] = {};
    senders[thread] = sender<Tile, weight_bits>(call, x.codes, weight, part, thread);
  });
  each_thread<Tile::threads>([&](int thread) {
    DQX_UNROLL
    for (int step = 0; step < STAGES - 1; ++step) fill(step, step, thread);
  });
  int stage = 0, empty = STAGES - 1;
  for (int step = 0; step < count; ++step) {
    each_thread<Tile::threads>([&](int) { wait_for_copies<STAGES - 2>(); });
    each_warp<Tile::threads>([&](int warp) {
      each_lane(warp, [&](int thread) { fill(step + STAGES - 1, empty, thread); });
      DQX_UNROLL
      for (int slice = 0; slice < 2; ++slice) {
        multiply_slice<Tile, weight_bits, stepped>(
            stages[stage], slice, warp, [&](int thread) -> Accumulators<Tile::row_tiles>& {
              if constexpr (channel) {
                return totals[thread].sums;
              } else {
                return run[thread];
              }
            });
        if constexpr (!channel) {
          const int k = part.first + step * STAGE_DEPTH + slice * SLICE;
          const int end = run_end(call, k) < part.last ? run_end(call, k) : part.last;
          if (k < part.last && end <= k + SLICE) {
            add_run<Tile>(call, x, weight, part, k, warp, run, totals);
          }
        }
      }
    });
    stage = stage + 1 < STAGES ? stage + 1 : 0;
    empty = empty + 1 < STAGES ? empty + 1 : 0;
  }
}

// Eight products in a row: element c of mma tiles 0 … 7 in row tile `tile`.
template <bool channel, int row_tiles>
__device__ __forceinline__ void octet_of(const Linear& call, const Rounded& x,
                                         const LinearWeight& weight,
                                         const Products<channel, row_tiles>& totals, int tile,
                                         int c, int64_t row, int column, float (&value)[OCTETS]) {
  if constexpr (channel) {
    float scales[OCTETS];
    read_scales(call, weight, 0, column, scales);
    DQX_UNROLL
    for (int j = 0; j < OCTETS; ++j) {
      const auto sum = static_cast<float>(totals.sums.at[tile][j].word[c]);
      value[j] = __fmul_rn(sum, scales[j] * x.scales[row]);
    }
  } else {
    DQX_UNROLL
    for (int j = 0; j < OCTETS; ++j) value[j] = totals.floats.at[tile][j][c];
  }
}

// Outputs in a row, from gate and up where `gated`; with several parts of the depth what this
// one adds to each: partial (part, gate or up, row, column).
template <bool gated, int count>
__device__ __forceinline__ void store_outputs(const Linear& call, const void* bias, void* y,
                                              float* partial, int64_t place, int column,
                                              float (&value)[count],
                                              [[maybe_unused]] const float (&other)[count]) {
  const int64_t matrix = call.rows * call.width;
  if (partial) {
    const int64_t from = int64_t{blockIdx.z} * (gated ? 2 : 1) * matrix + place;
    store_row(partial, Float::fp32, from, value);
    if constexpr (gated) store_row(partial, Float::fp32, from + matrix, other);
    return;
  }
  float added[count] = {};
  if (bias) read_row(bias, call.type, column, added);
  DQX_UNROLL
  for (int j = 0; j < count; ++j) {
    if constexpr (gated) value[j] = silu(value[j]) * other[j];
    value[j] += added[j];
  }
  store_row(y, call.type, place, value);
}

// The integers of the same places as octet_of has them.
template <int row_tiles>
__device__ __forceinline__ void store_sums(int* sums, int64_t place,
                                           const Products<true, row_tiles>& totals, int tile,
                                           int c) {
  DQX_UNROLL
  for (int j = 0; j < OCTETS; ++j) sums[place + j] = totals.sums.at[tile][j].word[c];
}

// One tile of y; with several parts of the depth, of what each part adds: partial
// (part, gate or up, row, column), integers where all of a row share a scale, else floats.
template <class Tile, bool channel, bool gated, class Totals>
__device__ __forceinline__ void store_tile(const Linear& call, const Rounded& x,
                                           const LinearWeight& weight, const LinearWeight& up,
                                           const Part& part, const void* bias, void* y,
                                           float* partial, Totals& totals,
                                           [[maybe_unused]] Totals& others) {
  const int64_t matrix = call.rows * call.width;
  const int64_t first = int64_t{blockIdx.z} * (gated ? 2 : 1) * matrix;
  each_thread<Tile::threads>([&](int thread) {
    DQX_UNROLL
    for (int tile = 0; tile < Tile::row_tiles; ++tile) {
      DQX_UNROLL
      for (int c = 0; c < 4; ++c) {
        const int64_t row = part.row + row_in_block(thread, tile, c);
        const int column = part.column + column_in_block(thread, c, 0);
        if (row < call.rows && column < call.width) {
          const int64_t place = row * call.width + column;
          if constexpr (channel) {
            if (partial) {
              auto* sums = reinterpret_cast<int*>(partial) + first;
              store_sums(sums, place, totals[thread], tile, c);
              if constexpr (gated) store_sums(sums, place + matrix, others[thread], tile, c);
              continue;
            }
          }
          float value[OCTETS], other[OCTETS];
          octet_of(call, x, weight, totals[thread], tile, c, row, column, value);
          if constexpr (gated) {
            octet_of(call, x, up, others[thread], tile, c, row, column, other);
          }
          store_outputs<gated>(call, bias, y, partial, place, column, value, other);
        }
      }
    }
  });
}

template <int weight_bits, bool channel, bool gated, int rows, int warps>
__global__ void __launch_bounds__(32 * warps, LEAST_BLOCKS)
    tensor_core_product(Linear call, Rounded x, LinearWeight weight, LinearWeight up,
                        const void* bias, void* y, float* partial, int part_depth) {
  using Tile = Tiling<weight_bits, channel, rows, warps>;
  using Totals = PerThread<Products<channel, Tile::row_tiles>, Tile::threads>;
  __shared__ typename Tile::Stage stages[STAGES];
  Totals totals;
  [[maybe_unused]] Totals others;
  const int first = static_cast<int>(blockIdx.z) * part_depth;
  const Part part{int64_t{blockIdx.x} * rows, static_cast<int>(blockIdx.y) * Tile::columns, first,
                  first + part_depth < call.depth ? first + part_depth : call.depth};
  tile_product<Tile, weight_bits, channel>(call, x, weight, part, stages, totals);
  if constexpr (gated) {
    tile_product<Tile, weight_bits, channel>(call, x, up, part, stages, others);
  }
  store_tile<Tile, channel, gated>(call, x, weight, up, part, bias, y, partial, totals, others);
}

constexpr int FINISH_THREADS = 256;

// y of what the parts have left: integers add up to what one part has; floats in the order of the
// parts, so that they are the same every time.
template <class T, bool gated>
__global__ void __launch_bounds__(FINISH_THREADS)
    finish_parts(Linear call, Rounded x, LinearWeight weight, LinearWeight up, const T* partial,
                 int parts, const void* bias, void* y) {
  each_thread<FINISH_THREADS>([&](int thread) {
    const int64_t matrix = call.rows * call.width;
    const int64_t place = int64_t{blockIdx.x} * FINISH_THREADS + thread;
    if (place >= matrix) return;
    T sum = 0, other_sum = 0;
    for (int part = 0; part < parts; ++part) {
      const T* at = partial + int64_t{part} * (gated ? 2 : 1) * matrix + place;
      sum += at[0];
      if constexpr (gated) other_sum += at[matrix];
    }
    auto value = static_cast<float>(sum);
    [[maybe_unused]] auto other = static_cast<float>(other_sum);
    if constexpr (std::is_same_v<T, int>) {
      const float scale = x.scales[place / call.width];
      const int64_t column = place % call.width;
      value = __fmul_rn(value, value_at(weight.scales, call.scales, column) * scale);
      if constexpr (gated) other = __fmul_rn(other, value_at(up.scales, call.scales, column) * scale);
    }
    if constexpr (gated) value = silu(value) * other;
    if (bias) value += value_at(bias, call.type, place % call.width);
    store(y, call.type, place, value);
  });
}

// Starts finish_parts, for `parts` of the depth.
template <bool channel, bool gated>
int finish(const Linear& call, const Operands& given, unsigned parts, Stream stream) {
  using T = std::conditional_t<channel, int, float>;
  const dim3 blocks(tiles(call.rows * call.width, FINISH_THREADS));
  return launch<FINISH_THREADS>(finish_parts<T, gated>, blocks, stream, call, given.x,
                                given.weights[0], given.weights[gated ? 1 : 0],
                                reinterpret_cast<const T*>(given.partial),
                                static_cast<int>(parts), given.bias, given.y);
}

}  // namespace
}  // namespace dqx
