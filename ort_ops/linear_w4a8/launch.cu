#include "launch.h"

#include "kernel.cuh"
#include "tensor_core.cuh"

namespace dqx {
namespace {

constexpr size_t ALIGNMENT = 256;  // of what lies in the workspace
constexpr int MOST_PARTS = 8, LEAST_PART = 4 * STAGE_DEPTH, MOST_ROWS_IN_PARTS = 128;

size_t code_bytes(const Linear& call) {
  const size_t codes = static_cast<size_t>(call.rows) * static_cast<size_t>(call.depth);
  return (codes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

int64_t run_count(const Linear& call) { return call.rows * (call.depth / call.activation_group); }

unsigned tiles(int64_t length, int64_t tile) {
  return static_cast<unsigned>((length + tile - 1) / tile);
}

template <class T>
int round_rows(const Linear& call, const void* x, const Rounded& to, Stream stream) {
  const dim3 runs(static_cast<unsigned>(run_count(call)));
  return launch<ROUND_THREADS>(round_runs<T>, runs, stream, call, static_cast<const T*>(x), to);
}

template <int weight_bits>
int multiply(const Linear& call, const Rounded& x, const LinearWeight* weights, const void* bias,
             void* y, Stream stream) {
  // blocks of the same columns come one after another, so that weights are read from memory once
  const dim3 blocks(tiles(call.rows, TILE_ROWS), tiles(call.width, TILE_COLUMNS));
  const auto kernel = call.gated ? linear_product<weight_bits, true>
                                 : linear_product<weight_bits, false>;
  const LinearWeight& up = weights[call.gated ? 1 : 0];
  return launch<PRODUCT_THREADS>(kernel, blocks, stream, call, x, weights[0], up, bias, y);
}

// Whether the product can run on tensor cores: chunks of 16 bytes are whole, and a slice of the
// depth lies in one run.
bool fits_tensor_cores(const Linear& call) {
  const int columns = CHUNK * 8 / call.weight_bits;
  if (call.depth % CHUNK || call.width % columns) return false;
  if (call.channel) {
    return call.activation_group == call.depth && (call.weight_bits == 8 || call.group % SLICE == 0);
  }
  return call.group % SLICE == 0 && call.activation_group % SLICE == 0;
}

bool aligned(const LinearWeight& weight) {
  return reinterpret_cast<uintptr_t>(weight.codes) % CHUNK == 0 &&
         reinterpret_cast<uintptr_t>(weight.steps) % CHUNK == 0;
}

// Of the depth, so that few rows keep all multiprocessors busy: at most, whatever the GPU is.
int most_parts(const Linear& call, int64_t rows) {
  if (!fits_tensor_cores(call) || rows > MOST_ROWS_IN_PARTS) return 1;
  const int parts = call.depth / LEAST_PART;
  return parts < 1 ? 1 : parts < MOST_PARTS ? parts : MOST_PARTS;
}

size_t partial_bytes(const Linear& call) {
  const int64_t rows = call.rows < MOST_ROWS_IN_PARTS ? call.rows : MOST_ROWS_IN_PARTS;
  const int parts = most_parts(call, rows);
  if (parts == 1) return 0;
  const size_t matrix = static_cast<size_t>(rows) * static_cast<size_t>(call.width);
  return matrix * sizeof(float) * static_cast<size_t>(parts) * (call.gated ? 2 : 1);
}

size_t scale_bytes(const Linear& call) {
  const size_t scales = static_cast<size_t>(run_count(call)) * sizeof(float);
  return (scales + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

struct Operands {
  Rounded x;
  const LinearWeight* weights;
  const void* bias;
  void* y;
  float* partial;
};

template <int weight_bits, bool channel, bool gated, int rows>
int multiply_tiles(const Linear& call, const Operands& given, Stream stream) {
  constexpr int warps = weight_bits == 4 ? 4 : 2;
  using Tile = Tiling<weight_bits, channel, rows, warps>;
  const unsigned down = tiles(call.rows, rows), across = tiles(call.width, Tile::columns);
  const int64_t wanted = tiles(2 * multiprocessors(), int64_t{down} * across);
  const int most = most_parts(call, call.rows), parts = wanted < most ? static_cast<int>(wanted) : most;
  const int depth = static_cast<int>(tiles(tiles(call.depth, parts), STAGE_DEPTH)) * STAGE_DEPTH;
  const unsigned used = tiles(call.depth, depth);
  float* partial = used > 1 ? given.partial : nullptr;
  const LinearWeight& up = given.weights[gated ? 1 : 0];
  const int error = launch<Tile::threads>(
      tensor_core_product<weight_bits, channel, gated, rows, warps>, dim3(down, across, used),
      stream, call, given.x, given.weights[0], up, given.bias, given.y, partial, depth);
  if (error || !partial) return error;
  return launch<FINISH_THREADS>(finish_parts<gated>,
                                dim3(tiles(call.rows * call.width, FINISH_THREADS)), stream, call,
                                partial, static_cast<int>(used), given.bias, given.y);
}

template <int weight_bits>
int multiply_on_tensor_cores(const Linear& call, const Operands& given, Stream stream) {
  if (!call.channel) {
    return call.gated ? multiply_tiles<weight_bits, false, true, 16>(call, given, stream)
                      : multiply_tiles<weight_bits, false, false, 32>(call, given, stream);
  }
  if (call.gated) {
    return call.rows <= 16 ? multiply_tiles<weight_bits, true, true, 16>(call, given, stream)
                           : multiply_tiles<weight_bits, true, true, 32>(call, given, stream);
  }
  if (call.rows <= 16) return multiply_tiles<weight_bits, true, false, 16>(call, given, stream);
  if (call.rows <= 32) return multiply_tiles<weight_bits, true, false, 32>(call, given, stream);
  return multiply_tiles<weight_bits, true, false, 64>(call, given, stream);
}

}  // namespace

size_t linear_workspace(const Linear& call) {  // grows with the rows
  return code_bytes(call) + scale_bytes(call) + partial_bytes(call);
}

int launch_linear(const Linear& call, const void* x, const LinearWeight* weights, const void* bias,
                  void* y, void* workspace, Stream stream) {
  if (call.rows == 0) return 0;
  auto* codes = static_cast<int8_t*>(workspace);
  const Rounded rounded{codes, reinterpret_cast<float*>(codes + code_bytes(call))};
  const int error = call.type == Float::fp16 ? round_rows<Half>(call, x, rounded, stream)
                                             : round_rows<float>(call, x, rounded, stream);
  if (error) return error;
  if (fits_tensor_cores(call) && aligned(weights[0]) && aligned(weights[call.gated ? 1 : 0])) {
    void* partial = codes + code_bytes(call) + scale_bytes(call);
    const Operands given{rounded, weights, bias, y, static_cast<float*>(partial)};
    return call.weight_bits == 8 ? multiply_on_tensor_cores<8>(call, given, stream)
                                 : multiply_on_tensor_cores<4>(call, given, stream);
  }
  return call.weight_bits == 8 ? multiply<8>(call, rounded, weights, bias, y, stream)
                               : multiply<4>(call, rounded, weights, bias, y, stream);
}

}  // namespace dqx
