#include "../on_cpu.h"
#include "paths.h"

namespace dqx {
namespace {

constexpr int LEAST_PART = 256;  // inputs that are worth a part of the depth

int32_t rows_of_block(const Linear& call) {
  if (!call.channel) return call.gated ? 16 : 32;
  if (call.rows <= 16) return 16;
  return call.gated || call.rows <= 32 ? 32 : 64;
}

// As many as keep two blocks on each multiprocessor.
int32_t parts_of_depth(const Linear& call, int32_t rows) {
  if (call.rows > MOST_ROWS_IN_PARTS) return 1;
  const int columns = call.weight_bits == 4 ? 256 : 128;
  const int64_t blocks = (call.rows + rows - 1) / rows * ((call.width + columns - 1) / columns);
  const int64_t wanted = (2 * multiprocessors() + blocks - 1) / blocks;
  const int64_t most = call.depth / LEAST_PART < MOST_PARTS ? call.depth / LEAST_PART : MOST_PARTS;
  return static_cast<int32_t>(wanted < most ? wanted : most < 1 ? 1 : most);
}

}  // namespace

Plan plan_linear(const Linear& call) {
  if (fits_mma4(call)) {
    const int32_t rows = call.gated || call.rows <= 16 ? 16 : 32;
    return {Path::mma4, rows, parts_of_depth(call, rows)};
  }
  if (!fits_mma8(call)) return {Path::dp4a, 32, 1};
  const int32_t rows = rows_of_block(call);
  return {Path::mma8, rows, parts_of_depth(call, rows)};
}

}  // namespace dqx
