// Shapes of inputs, of which sizes may not be known yet: those are -1, and fit to everything.
#pragma once

#include "report.h"

namespace dqx {

inline bool same(int64_t a, int64_t b) { return a < 0 || b < 0 || a == b; }

inline void expect(const char* name, const nvinfer1::Dims& shape, const nvinfer1::Dims& wanted) {
  bool fits = shape.nbDims == wanted.nbDims;
  for (int axis = 0; fits && axis < shape.nbDims; ++axis) {
    fits = same(shape.d[axis], wanted.d[axis]);
  }
  if (!fits) {
    refuse("%s %s has to be %s", name, text_of(shape).c_str(), text_of(wanted).c_str());
  }
}

// Refuses what has not a number for each of `width` channels of `heads`, in this order. Axes may be
// any, as such tensors broadcast.
inline void expect_channels(const char* name, const nvinfer1::Dims& shape, int32_t heads,
                            int64_t width) {
  int64_t count = 1;
  for (int axis = 0; axis < shape.nbDims; ++axis) {
    count = count < 0 || shape.d[axis] < 0 ? -1 : count * shape.d[axis];
  }
  if (!same(count, width < 0 ? -1 : heads * width)) {
    refuse("%s %s has to have a number for each channel of %d heads of %lld", name,
           text_of(shape).c_str(), heads, static_cast<long long>(width));
  }
}

}  // namespace dqx
