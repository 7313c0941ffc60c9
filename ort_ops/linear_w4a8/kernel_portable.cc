#include "machine_portable.h"
#include "tile.h"

namespace dqx {
extern const Kernel PORTABLE;
const Kernel PORTABLE = {"portable", quantize<Machine>, panel<Machine>};
}  // namespace dqx
