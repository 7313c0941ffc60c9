#include "machine_avx512.h"
#include "tile.h"

namespace dqx {
extern const Kernel AVX512;
const Kernel AVX512 = {"avx512", quantize<Machine>, panel<Machine>};
}  // namespace dqx
