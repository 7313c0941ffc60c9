#include "linear_w4a8/machine_neon.h"

#include "attend.h"

namespace dqx {
extern const AttentionKernel ATTENTION_NEON;
const AttentionKernel ATTENTION_NEON = {"neon", prepare<Machine>, attend<Machine>};
}  // namespace dqx
