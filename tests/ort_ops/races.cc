// Kernels of two warps with and without the barrier, and the wait, that they need.
#include <cstdio>
#include <cstring>

#include "warp.cuh"

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

}  // namespace

int main(int count, char** words) {
  for (int i = 0; i < THREADS; ++i) source[i] = i + 1;
  const char* what = count > 1 ? words[1] : "";
  late_copies = true;
  if (!std::strcmp(what, "barrier")) launch<THREADS>(meet<true>, dim3(1), nullptr);
  if (!std::strcmp(what, "no barrier")) launch<THREADS>(meet<false>, dim3(1), nullptr);
  if (!std::strcmp(what, "wait")) launch<THREADS>(copy<1>, dim3(1), nullptr);
  if (!std::strcmp(what, "no wait")) launch<THREADS>(copy<2>, dim3(1), nullptr);
  std::printf("%d %d\n", result[0], result[THREADS - 1]);
}
