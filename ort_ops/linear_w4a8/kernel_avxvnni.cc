#include "machine_avx2.h"
#include "tile.h"

namespace dqx {
extern const Kernel AVXVNNI;
const Kernel AVXVNNI = {"avxvnni", quantize<Machine>, panel<Machine>};
}  // namespace dqx
