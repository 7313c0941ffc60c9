#include "machine_neon.h"
#include "tile.h"

namespace dqx {
extern const Kernel NEON;
const Kernel NEON = {"neon", quantize<Machine>, panel<Machine>};
}  // namespace dqx
