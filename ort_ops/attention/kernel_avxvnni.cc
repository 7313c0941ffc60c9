#include "linear_w4a8/machine_avx2.h"

#include "attend.h"

namespace dqx {
extern const AttentionKernel ATTENTION_AVXVNNI;
const AttentionKernel ATTENTION_AVXVNNI = {"avxvnni", prepare<Machine>, attend<Machine>};
}  // namespace dqx
