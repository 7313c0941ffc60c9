#include "halves.cuh"

namespace dqx {
namespace {

template <class T, int weight_bits, bool gated, int rows>
int multiply_tiles(const Linear& call, const Operands& given, int wanted, Stream stream) {
  using Tile = HalfTiling<weight_bits, rows>;
  const unsigned down = tiles(call.rows, rows), across = tiles(call.width, Tile::columns);
  const int depth = static_cast<int>(tiles(tiles(call.depth, wanted), STAGE_DEPTH)) * STAGE_DEPTH;
  const unsigned used = tiles(call.depth, depth);
  float* partial = used > 1 ? given.partial : nullptr;
  const int error = launch<Tile::threads>(
      halves_product<T, weight_bits, gated, rows>, dim3(down, across, used), stream, call,
      given.input, given.weights[0], given.weights[gated ? 1 : 0], given.bias, given.y, partial,
      depth);
  return error || !partial ? error : finish<false, gated>(call, given, used, stream);
}

template <class T, int weight_bits>
int multiply(const Linear& call, const Operands& given, const Plan& plan, Stream stream) {
  const int parts = plan.parts;
  if (call.gated) {
    return plan.rows <= 8 ? multiply_tiles<T, weight_bits, true, 8>(call, given, parts, stream)
                          : multiply_tiles<T, weight_bits, true, 16>(call, given, parts, stream);
  }
  return plan.rows <= 8 ? multiply_tiles<T, weight_bits, false, 8>(call, given, parts, stream)
                        : multiply_tiles<T, weight_bits, false, 32>(call, given, parts, stream);
}

template <class T>
int multiply(const Linear& call, const Operands& given, const Plan& plan, Stream stream) {
  return call.weight_bits == 8 ? multiply<T, 8>(call, given, plan, stream)
                               : multiply<T, 4>(call, given, plan, stream);
}

}  // namespace

// Chunks of 16 bytes are whole, and a slice of the depth lies in one group.
bool fits_halves(const Linear& call) {
  if (call.activation_bits != 16 || call.channel || call.type == Float::fp32) return false;
  if (call.depth % HALVES || call.width % (CHUNK * 8 / call.weight_bits)) return false;
  return call.group % SLICE == 0 || call.group >= call.depth;
}

int multiply_by_halves(const Linear& call, const Operands& given, const Plan& plan,
                       Stream stream) {
  return call.type == Float::bf16 ? multiply<Bfloat>(call, given, plan, stream)
                                  : multiply<Half>(call, given, plan, stream);
}

}  // namespace dqx
