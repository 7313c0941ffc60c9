#include "linear_w4a8/machine_avx2.h"

#include "attend.h"

namespace dqx {
extern const AttentionKernel ATTENTION_AVX2;
const AttentionKernel ATTENTION_AVX2 = {"avx2", prepare<Machine>, attend<Machine>};
}  // namespace dqx
