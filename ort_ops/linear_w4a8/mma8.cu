#include "tensor_core.cuh"

namespace dqx {
namespace {

template <int weight_bits, bool channel, bool gated, int rows>
int multiply_tiles(const Linear& call, const Operands& given, int wanted, Stream stream) {
  constexpr int warps = weight_bits == 4 ? 4 : 2;
  using Tile = Tiling<weight_bits, channel, rows, warps>;
  const unsigned down = tiles(call.rows, rows), across = tiles(call.width, Tile::columns);
  const int depth = static_cast<int>(tiles(tiles(call.depth, wanted), STAGE_DEPTH)) * STAGE_DEPTH;
  const unsigned used = tiles(call.depth, depth);
  float* partial = used > 1 ? given.partial : nullptr;
  const LinearWeight& up = given.weights[gated ? 1 : 0];
  const int error = launch<Tile::threads>(
      tensor_core_product<weight_bits, channel, gated, rows, warps>, dim3(down, across, used),
      stream, call, given.x, given.weights[0], up, given.bias, given.y, partial, depth);
  return error || !partial ? error : finish<channel, gated>(call, given, used, stream);
}

template <int weight_bits>
int multiply(const Linear& call, const Operands& given, const Plan& plan, Stream stream) {
  const int parts = plan.parts;
  if (!call.channel) {
    return call.gated ? multiply_tiles<weight_bits, false, true, 16>(call, given, parts, stream)
                      : multiply_tiles<weight_bits, false, false, 32>(call, given, parts, stream);
  }
  if (call.gated) {
    return plan.rows <= 16 ? multiply_tiles<weight_bits, true, true, 16>(call, given, parts, stream)
                           : multiply_tiles<weight_bits, true, true, 32>(call, given, parts, stream);
  }
  if (plan.rows <= 16) return multiply_tiles<weight_bits, true, false, 16>(call, given, parts, stream);
  if (plan.rows <= 32) return multiply_tiles<weight_bits, true, false, 32>(call, given, parts, stream);
  return multiply_tiles<weight_bits, true, false, 64>(call, given, parts, stream);
}

}  // namespace

// Chunks of 16 bytes are whole, and a slice of the depth lies in one run.
bool fits_mma8(const Linear& call) {
  const int columns = CHUNK * 8 / call.weight_bits;
  if (call.activation_bits > 8 || call.depth % CHUNK || call.width % columns) return false;
  if (call.channel) {
    return call.activation_group == call.depth && (call.weight_bits == 8 || call.group % SLICE == 0);
  }
  return call.group % SLICE == 0 && call.activation_group % SLICE == 0;
}

int multiply_by_mma8(const Linear& call, const Operands& given, const Plan& plan, Stream stream) {
  return call.weight_bits == 8 ? multiply<8>(call, given, plan, stream)
                               : multiply<4>(call, given, plan, stream);
}

}  // namespace dqx
