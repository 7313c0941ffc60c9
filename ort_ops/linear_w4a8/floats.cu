#include "floats.cuh"

namespace dqx {
namespace {

template <int weight_bits>
int multiply(const Linear& call, const Operands& given, Stream stream) {
  // blocks of the same columns come one after another, so that weights are read from memory once
  const dim3 blocks(tiles(call.rows, TILE_ROWS), tiles(call.width, TILE_COLUMNS));
  const auto kernel = call.gated ? floats_product<weight_bits, true>
                                 : floats_product<weight_bits, false>;
  return launch<PRODUCT_THREADS>(kernel, blocks, stream, call, given.input, given.weights[0],
                                 given.weights[call.gated ? 1 : 0], given.bias, given.y);
}

}  // namespace

bool fits_floats(const Linear& call) { return call.activation_bits == 16 && !call.channel; }

int multiply_by_floats(const Linear& call, const Operands& given, const Plan&, Stream stream) {
  return call.weight_bits == 8 ? multiply<8>(call, given, stream)
                               : multiply<4>(call, given, stream);
}

}  // namespace dqx
