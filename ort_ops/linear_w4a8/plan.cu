#include <initializer_list>

#include "../on_cpu.h"
#include "paths.h"
#include "tiles.h"

namespace dqx {
namespace {

constexpr int LEAST_PART = 256;  // inputs that are worth a part of the depth
constexpr int BLOCKS_OF_HALVES = 2;  // on each multiprocessor; not measured

int64_t tiles_of(int64_t length, int64_t tile) { return (length + tile - 1) / tile; }

// The newest GPU of the table that is no newer than the one in use; of those older, the oldest. That
// with wgmma stands for itself alone.
int known_capability() {
  const int gpu = compute_capability();
  int known = TILE_RULES[0].capability;
  for (const TileRule& rule : TILE_RULES) {
    const bool stands = rule.capability <= gpu && (rule.capability != WGMMA_GPU || gpu == WGMMA_GPU);
    if (stands && rule.capability > known) known = rule.capability;
  }
  return known;
}

const TileRule& rule_of(const Linear& call, bool int4) {
  const int gpu = known_capability();
  for (const TileRule& rule : TILE_RULES) {
    if (rule.capability == gpu && rule.weight_bits == call.weight_bits && rule.int4 == int4 &&
        rule.channel == call.channel && rule.gated == call.gated && call.rows <= rule.most_rows) {
      return rule;
    }
  }
  return TILE_RULES[0];  // not reached: every form has a rule for any number of rows
}

// As many as the rule's blocks need, as are worth it, and as have room.
int32_t parts_of_depth(const Linear& call, const TileRule& rule) {
  if (call.rows > MOST_ROWS_IN_PARTS) return 1;
  const int columns = call.weight_bits == 4 ? 256 : 128;
  const int64_t blocks = tiles_of(call.rows, rule.rows) * tiles_of(call.width, columns);
  int64_t parts = tiles_of(int64_t{rule.blocks} * multiprocessors(), blocks);
  const auto room = static_cast<int64_t>(MOST_PARTIAL_BYTES / part_bytes(call));
  for (const int64_t most : {int64_t{call.depth} / LEAST_PART, int64_t{MOST_PARTS}, room}) {
    parts = parts < most ? parts : most;
  }
  return static_cast<int32_t>(parts < 1 ? 1 : parts);
}

}  // namespace

Plan plan_linear(const Linear& call) {
  if (call.rows > 0 && fits_halves(call)) {
    TileRule rule{};
    rule.rows = call.rows <= 8 ? 8 : call.gated ? 16 : 32;
    rule.blocks = BLOCKS_OF_HALVES;
    return {Path::halves, rule.rows, parts_of_depth(call, rule)};
  }
  if (fits_floats(call)) return {Path::floats, 32, 1};
  const bool int4 = fits_mma4(call);
  if (call.rows == 0 || (!int4 && !fits_mma8(call))) return {Path::dp4a, 32, 1};
  const TileRule& rule = rule_of(call, int4);
  return {rule.path, rule.rows, parts_of_depth(call, rule)};
}

}  // namespace dqx
