// Rounds the rows that a quantized linear multiplies; op.py says how.
#pragma once

#include "../on_cpu.h"
#include "paths.h"

namespace dqx {
namespace {

constexpr float LEAST_SCALE = 0x1p-24f;
constexpr int ROUND_THREADS = 128;

// The larger one; what is not a number wins, so that it reaches every output of its row.
__device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }

// Rounds one run of inputs that share a scale, a block a run; `packed`: to codes of 4 bits, two a
// byte with the first in the low half.
template <class T, bool packed>
__global__ void __launch_bounds__(ROUND_THREADS) round_runs(Linear call, const T* x, Rounded to) {
  const int length = call.activation_group;
  const int64_t first = int64_t{blockIdx.x} * length;
  __shared__ float largest[ROUND_THREADS];
  each_thread<ROUND_THREADS>([&](int thread) {
    float most = 0;
    for (int i = thread; i < length; i += ROUND_THREADS) {
      most = larger(most, fabsf(widened(x[first + i])));
    }
    largest[thread] = most;
  });
  for (int half = ROUND_THREADS / 2; half > 0; half /= 2) {
    each_thread<ROUND_THREADS>([&](int thread) {
      if (thread < half) largest[thread] = larger(largest[thread], largest[thread + half]);
    });
  }
  each_thread<ROUND_THREADS>([&](int thread) {
    const float wanted = largest[0] * call.step;
    const float scale = wanted < LEAST_SCALE ? LEAST_SCALE : wanted;
    const float top = call.activation_bits == 4 ? 7.0f : 127.0f;
    const auto code_at = [&](int64_t place) {
      const float code = rintf(widened(x[place]) / scale);
      return static_cast<int8_t>(fminf(fmaxf(code, -top - 1), top));
    };
    if constexpr (packed) {
      for (int i = 2 * thread; i < length; i += 2 * ROUND_THREADS) {
        const int low = code_at(first + i) & 15, high = code_at(first + i + 1) & 15;
        to.codes[(first + i) / 2] = static_cast<int8_t>(low | high << 4);
      }
    } else {
      for (int i = thread; i < length; i += ROUND_THREADS) {
        to.codes[first + i] = code_at(first + i);
      }
    }
    if (thread == 0) to.scales[blockIdx.x] = scale;
  });
}

}  // namespace
}  // namespace dqx
