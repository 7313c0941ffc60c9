#include "linear_w4a8/machine_neon.h"

#include "attend.h"

namespace dqx {
extern const AttentionKernel ATTENTION_I8MM;
const AttentionKernel ATTENTION_I8MM = {"i8mm", prepare<Machine>, attend<Machine>};
}  // namespace dqx
