// Packed weights, one copy a process: graphs of one bundle that are open together share them.
#pragma once

#include <memory>

#include "linear_w4a8/layout.h"

namespace dqx {

// Sizes in bytes of what a source points to.
struct SourceBytes {
  size_t codes, scales, steps, bias;
};

// The packed form of equal tensors of equal form, made at the first request.
std::shared_ptr<const Weights> packed(const Form& form, const Source& first, const Source* second,
                                      const SourceBytes& bytes);

}  // namespace dqx
