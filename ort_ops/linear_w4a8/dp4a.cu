#include "kernel.cuh"

namespace dqx {
namespace {

template <int weight_bits>
int multiply(const Linear& call, const Operands& given, Stream stream) {
  // blocks of the same columns come one after another, so that weights are read from memory once
  const dim3 blocks(tiles(call.rows, TILE_ROWS), tiles(call.width, TILE_COLUMNS));
  const auto kernel = call.gated ? linear_product<weight_bits, true>
                                 : linear_product<weight_bits, false>;
  const LinearWeight& up = given.weights[call.gated ? 1 : 0];
  return launch<PRODUCT_THREADS>(kernel, blocks, stream, call, given.x, given.weights[0], up,
                                 given.bias, given.y);
}

}  // namespace

bool fits_dp4a(const Linear& call) { return call.activation_bits < 16; }

int multiply_by_dp4a(const Linear& call, const Operands& given, const Plan&, Stream stream) {
  return call.weight_bits == 8 ? multiply<8>(call, given, stream)
                               : multiply<4>(call, given, stream);
}

}  // namespace dqx
