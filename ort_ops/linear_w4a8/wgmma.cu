#include "wgmma.cuh"

namespace dqx {
namespace {

template <int weight_bits, bool gated, int rows>
int multiply_tiles(const Linear& call, const Operands& given, int wanted, Stream stream) {
  using Tile = GroupTiling<weight_bits, rows>;
  const unsigned down = tiles(call.rows, rows), across = tiles(call.width, Tile::columns);
  const int depth = static_cast<int>(tiles(tiles(call.depth, wanted), STAGE_DEPTH)) * STAGE_DEPTH;
  const unsigned used = tiles(call.depth, depth);
  int* partial = used > 1 ? reinterpret_cast<int*>(given.partial) : nullptr;
  const int error = launch<Tile::threads, GROUP, Tile::room>(
      group_products<weight_bits, gated, rows>, dim3(down, across, used), stream, call, given.x,
      given.weights[0], given.weights[gated ? 1 : 0], given.bias, given.y, partial, depth);
  return error || !partial ? error : finish<true, gated>(call, given, used, stream);
}

template <int weight_bits, bool gated>
int multiply(const Linear& call, const Operands& given, const Plan& plan, Stream stream) {
  const int parts = plan.parts;
  if (plan.rows <= 16) return multiply_tiles<weight_bits, gated, 16>(call, given, parts, stream);
  if (plan.rows <= 32) return multiply_tiles<weight_bits, gated, 32>(call, given, parts, stream);
  if constexpr (!gated) {
    if (plan.rows > 64) return multiply_tiles<weight_bits, gated, 128>(call, given, parts, stream);
  }
  return multiply_tiles<weight_bits, gated, 64>(call, given, parts, stream);
}

}  // namespace

bool fits_wgmma(const Linear& call) {
  return compute_capability() == WGMMA_GPU && call.channel && fits_mma8(call);
}

int multiply_by_wgmma(const Linear& call, const Operands& given, const Plan& plan, Stream stream) {
  if (call.weight_bits == 8) {
    return call.gated ? multiply<8, true>(call, given, plan, stream)
                      : multiply<8, false>(call, given, plan, stream);
  }
  return call.gated ? multiply<4, true>(call, given, plan, stream)
                    : multiply<4, false>(call, given, plan, stream);
}

}  // namespace dqx
