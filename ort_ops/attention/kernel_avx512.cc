#include "linear_w4a8/machine_avx512.h"

#include "attend.h"

namespace dqx {
extern const AttentionKernel ATTENTION_AVX512;
const AttentionKernel ATTENTION_AVX512 = {"avx512", prepare<Machine>, attend<Machine>};
}  // namespace dqx
