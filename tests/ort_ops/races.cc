// Kernels of two warps, and of a group, with and without the barrier and the wait that they need.
#include <cstdio>
#include <cstring>

#include "warpgroup.cuh"

namespace {

using namespace dqx;

constexpr int THREADS = 64;
int source[THREADS], result[THREADS];

// Each thread reads what a thread of the other warp wrote.
template <bool barrier>
void meet() {
  __shared__ int shared[THREADS];
  if constexpr (barrier) {
    each_thread<THREADS>([&](int thread) { shared[thread] = thread; });
  } else {
    each_warp<THREADS>([&](int warp) {
      each_lane(warp, [&](int thread) { shared[thread] = thread; });
    });
  }
  each_thread<THREADS>([&](int thread) { result[thread] = shared[THREADS - 1 - thread]; });
}

// Each thread reads what it copied, one of two groups.
template <int open>
void copy() {
  __shared__ int shared[2][THREADS];
  each_thread<THREADS>([&](int thread) {
    shared[0][thread] = 0;
    copy_one(&shared[0][thread], &source[thread], true);
    close_copies();
    copy_one(&shared[1][thread], &source[thread], true);
    close_copies();
    wait_for_copies<open>();
    result[thread] = shared[0][thread];
  });
}

// 32 ones times 32 ones; the left ones change when at most `open` products are under way.
template <int open>
void multiply() {
  alignas(1024) __shared__ uint4 ones[16 * 2];  // 16 rows of 32 bytes, swizzled or not
  PerThread<Quad, GROUP> left;
  struct Sums {
    int at[8];
  };
  PerThread<Sums, GROUP> sums;
  each_thread<GROUP>([&](int thread) {
    left[thread] = {{0x01010101, 0x01010101, 0x01010101, 0x01010101}};
    sums[thread] = {};
    if (thread < 32) std::memset(&ones[thread], 1, sizeof(uint4));
    hand_over();
  });
  each_group<GROUP>([&](int group) {
    open_products();
    multiply_group<16>(
        group, [&](int thread) -> Quad& { return left[thread]; }, described<32>(ones),
        [&](int thread) -> int(&)[8] { return sums[thread].at; });
    close_products();
    wait_for_products<open>();
    each_member(group, [&](int thread) { left[thread] = {}; });
    wait_for_products<0>();
    each_member(group, [&](int thread) {
      if (thread < THREADS) result[thread] = sums[thread].at[7];
    });
  });
}

}  // namespace

int main(int count, char** words) {
  for (int i = 0; i < THREADS; ++i) source[i] = i + 1;
  const char* what = count > 1 ? words[1] : "";
  late_copies = std::strcmp(what, "product") && std::strcmp(what, "no product");
  if (!std::strcmp(what, "barrier")) launch<THREADS>(meet<true>, dim3(1), nullptr);
  if (!std::strcmp(what, "no barrier")) launch<THREADS>(meet<false>, dim3(1), nullptr);
  if (!std::strcmp(what, "wait")) launch<THREADS>(copy<1>, dim3(1), nullptr);
  if (!std::strcmp(what, "no wait")) launch<THREADS>(copy<2>, dim3(1), nullptr);
  if (!std::strcmp(what, "product")) launch<GROUP, GROUP>(multiply<0>, dim3(1), nullptr);
  if (!std::strcmp(what, "no product")) launch<GROUP, GROUP>(multiply<1>, dim3(1), nullptr);
  std::printf("%d %d\n", result[0], result[THREADS - 1]);
}
