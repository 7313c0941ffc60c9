// Memory for the integers of one call, kept for the next call on the same thread.
#pragma once

#include "linear_w4a8/aligned.h"

namespace dqx {

enum class Use { CALL, TASK };  // of an operator; a thread may run tasks while its call waits

// At least `bytes` bytes that stay valid until the next request for the same use on this thread.
template <Use>
uint8_t* workspace(size_t bytes) {
  static thread_local Aligned<uint8_t> kept;
  if (kept.size() < bytes) kept = Aligned<uint8_t>(bytes);
  return kept.data();
}

}  // namespace dqx
