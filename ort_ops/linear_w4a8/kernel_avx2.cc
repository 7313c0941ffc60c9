#include "machine_avx2.h"
#include "tile.h"

namespace dqx {
extern const Kernel AVX2;
const Kernel AVX2 = {"avx2", quantize<Machine>, panel<Machine>};
}  // namespace dqx
