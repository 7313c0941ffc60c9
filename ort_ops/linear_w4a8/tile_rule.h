// How linears are divided: a line of tiles.h.
#pragma once

#include "launch.h"

namespace dqx {

struct TileRule {
  int capability;   // of the GPU, by ten
  int weight_bits;
  bool int4;        // activations of 4 bits, on tensor cores that have them
  bool channel, gated;
  int64_t most_rows;  // that it is for
  Path path;
  int32_t rows;     // of a block
  int32_t blocks;   // of a multiprocessor, that parts of the depth are to fill
};

}  // namespace dqx
