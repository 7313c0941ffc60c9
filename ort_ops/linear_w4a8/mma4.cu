#include "mma4.cuh"

namespace dqx {
namespace {

constexpr int FIRST_GPU = 80, BEHIND_LAST_GPU = 90;  // compute capabilities that have the mma

template <bool channel, bool gated, int rows>
int multiply_tiles(const Linear& call, const Operands& given, int wanted, Stream stream) {
  using Tile = NibbleTiling<rows>;
  const unsigned down = tiles(call.rows, rows), across = tiles(call.width, NIBBLE_COLUMNS);
  const int depth = static_cast<int>(tiles(tiles(call.depth, wanted), NIBBLE_DEPTH)) * NIBBLE_DEPTH;
  const unsigned used = tiles(call.depth, depth);
  float* partial = used > 1 ? given.partial : nullptr;
  const int error = launch<Tile::threads>(
      int4_product<channel, gated, rows>, dim3(down, across, used), stream, call, given.x,
      given.weights[0], given.weights[gated ? 1 : 0], given.bias, given.y, partial, depth);
  return error || !partial ? error : finish<channel, gated>(call, given, used, stream);
}

// Whether a stage of inputs lies in one run of `length` inputs that share a scale.
bool in_one_run(const Linear& call, int length) {
  return length % NIBBLE_DEPTH == 0 || length >= call.depth;
}

}  // namespace

bool fits_mma4(const Linear& call) {
  const int gpu = compute_capability();
  if (gpu < FIRST_GPU || gpu >= BEHIND_LAST_GPU) return false;
  if (call.weight_bits != 4 || call.activation_bits != 4) return false;
  if (call.depth % (2 * CHUNK) || call.width % (2 * CHUNK)) return false;
  if (call.channel && call.activation_group != call.depth) return false;
  return in_one_run(call, call.group) && in_one_run(call, call.activation_group);
}

int multiply_by_mma4(const Linear& call, const Operands& given, const Plan& plan, Stream stream) {
  const int parts = plan.parts;
  if (call.gated) {
    return call.channel ? multiply_tiles<true, true, 16>(call, given, parts, stream)
                        : multiply_tiles<false, true, 16>(call, given, parts, stream);
  }
  if (plan.rows <= 16) {
    return call.channel ? multiply_tiles<true, false, 16>(call, given, parts, stream)
                        : multiply_tiles<false, false, 16>(call, given, parts, stream);
  }
  return call.channel ? multiply_tiles<true, false, 32>(call, given, parts, stream)
                      : multiply_tiles<false, false, 32>(call, given, parts, stream);
}

}  // namespace dqx
