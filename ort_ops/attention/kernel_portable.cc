#include "linear_w4a8/machine_portable.h"

#include "attend.h"

namespace dqx {
extern const AttentionKernel ATTENTION_PORTABLE;
const AttentionKernel ATTENTION_PORTABLE = {"portable", prepare<Machine>, attend<Machine>};
}  // namespace dqx
