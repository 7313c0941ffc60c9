#include <cstdlib>
#include <cstring>

#include "kernel.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace dqx {

#if defined(__x86_64__)
extern const Kernel AVX512, AVXVNNI, AVX2;
#elif defined(__aarch64__)
extern const Kernel I8MM, NEON;
#endif
extern const Kernel PORTABLE;

#if defined(__x86_64__)
// VNNI on 256 bits without AVX-512: clang before 16 has no name for it.
static bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif

std::vector<const Kernel*> kernels_here() {
  std::vector<const Kernel*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    found.push_back(&AVX512);
  }
  if (avx2 && has_avxvnni()) found.push_back(&AVXVNNI);
  if (avx2) found.push_back(&AVX2);
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long DOT_PRODUCT = 1ul << 20, MATRIX_MULTIPLY = 1ul << 13;  // asm/hwcap.h
  const bool dot_product = getauxval(AT_HWCAP) & DOT_PRODUCT;
  if (dot_product && getauxval(AT_HWCAP2) & MATRIX_MULTIPLY) found.push_back(&I8MM);
  if (dot_product) found.push_back(&NEON);
#endif
  found.push_back(&PORTABLE);
  return found;
}

const Kernel* choose_kernel() {
  const std::vector<const Kernel*> found = kernels_here();
  const char* name = std::getenv("DQX_KERNEL");
  if (name == nullptr || *name == '\0') return found.front();
  for (const Kernel* kernel : found) {
    if (std::strcmp(kernel->name, name) == 0) return kernel;
  }
  return nullptr;
}

}  // namespace dqx
