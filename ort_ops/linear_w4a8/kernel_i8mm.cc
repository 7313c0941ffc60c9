#include "machine_neon.h"
#include "tile.h"

namespace dqx {
extern const Kernel I8MM;
const Kernel I8MM = {"i8mm", quantize<Machine>, panel<Machine>};
}  // namespace dqx
