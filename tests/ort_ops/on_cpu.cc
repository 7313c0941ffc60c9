// C functions around what on_cpu.h has in place of CUDA's, and a kernel of several phases.
#include "on_cpu.h"

extern "C" void widen(const uint16_t* halves, float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = dqx::widened(dqx::Half{halves[i]});
}

extern "C" void halve(const float* values, uint16_t* halves, int64_t count) {
  for (int64_t i = 0; i < count; ++i) halves[i] = dqx::half_of(values[i]).bits;
}

extern "C" int dp4a(int a, int b, int sum) { return dqx::__dp4a(a, b, sum); }

extern "C" unsigned dp4a_unsigned(unsigned a, unsigned b, unsigned sum) {
  return dqx::__dp4a(a, b, sum);
}

// Thread t of a block adds what all threads of it left in the phase before.
static void sum_of_block(const int* given, int* sums) {
  using namespace dqx;
  const int first = static_cast<int>(blockIdx.x + 2 * blockIdx.y + 4 * blockIdx.z) * 8;
  __shared__ int shared[8];
  PerThread<int, 8> doubled;
  each_thread<8>([&](int thread) {
    shared[thread] = given[first + thread];
    doubled[thread] = 2 * shared[thread];
  });
  each_thread<8>([&](int thread) {
    if (thread == 7) return;
    int sum = doubled[thread];
    for (int other : shared) sum += other;
    sums[first + thread] = sum;
  });
}

extern "C" int sum_blocks(const int* given, int* sums, int blocks) {
  const auto deep = static_cast<unsigned>(blocks) / 4;
  return dqx::launch<8>(sum_of_block, dqx::dim3(2, 2, deep), nullptr, given, sums);
}
