// Lets one source of a kernel run on a GPU and, compiled as C++ with -DDQX_ON_CPU, on the host.
//
// A kernel is written as a list of phases:
// * `each_thread<N>([&](int thread) { … });` is done by all N threads of a block, which wait for
//   each other at its end. On the host it is a loop. A thread may return from its phase early.
// * Between phases stands only what is the same for all threads of a block: loops over tiles,
//   conditions on blockIdx. A kernel itself may return where all of its threads do.
// * `PerThread<T, N> sums;` keeps what a thread needs in later phases, `sums[thread]`: registers on
//   a GPU. A local variable of the kernel would be one for all threads of the host.
// * __shared__ variables are written in one phase and read in a later one. Only the thread that
//   wrote may read in the same phase.
// * There are no warps, no atomics and no __syncthreads(): the host has none. What needs them
//   (tensor cores) stands under #ifndef DQX_ON_CPU, as another body of the same phase.
// * `launch<N>(kernel, dim3(x, y), stream, arguments…)` starts it: a template of a kernel with all
//   its arguments named, `rounded<float>`. No blocks: nothing happens. `launch<N, 128, bytes>`:
//   128 threads do something together that the host does at once, and `bytes` of shared memory
//   are not declared in the kernel.
// * All of it stands in an unnamed namespace: on the host the linker would take one of two functions
//   of the same name, of different operators, for both.
// Of CUDA's own functions the host has those of <cmath> and __dp4a. A Half becomes a float by
// `widened`, and is made by `half_of`; a Bfloat by `bfloat_of`.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "launch.h"

#ifdef DQX_ON_CPU
#include <cstring>
#define DQX_UNROLL
#define __device__
#define __forceinline__ inline
#define __global__
#define __launch_bounds__(...)
#ifdef DQX_ON_THREADS
#include "on_threads.h"
#define __shared__ static  // blocks run one after another
#else
#define __shared__
#endif
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
// before a loop over what a thread keeps: indexed by numbers known when compiling, it is registers
#define DQX_UNROLL _Pragma("unroll")
#endif

namespace dqx {

#ifdef DQX_ON_CPU

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline thread_local dim3 blockIdx;

#ifdef DQX_ON_THREADS
template <int threads, class Phase>
void each_thread(const Phase& phase) {
  for (int step = 0; step < share_of_team; ++step) {
    lane_at_work = place_in_team * share_of_team + turn(step, share_of_team);
    if (lane_at_work < threads) phase(lane_at_work);
  }
  wait_for_team();
}
#else
template <int threads, class Phase>
void each_thread(const Phase& phase) {
  for (int thread = 0; thread < threads; ++thread) phase(thread);
}
#endif

template <class T, int threads>
struct PerThread {
  T values[threads];
  T& operator[](int thread) { return values[thread]; }
};

template <int threads, int together = 32, int room = 0, class... Parameters>
int launch(void (*kernel)(Parameters...), dim3 blocks, Stream,
           std::common_type_t<Parameters>... arguments) {
  const auto each_block = [&](const auto& work) {
    for (unsigned z = 0; z < blocks.z; ++z) {
      for (unsigned y = 0; y < blocks.y; ++y) {
        for (unsigned x = 0; x < blocks.x; ++x) {
          blockIdx = dim3(x, y, z);
          work();
        }
      }
    }
  };
#ifdef DQX_ON_THREADS
  run_team(threads, together, each_block, [&] { kernel(arguments...); });
#else
  each_block([&] { kernel(arguments...); });
#endif
  return 0;
}

inline int multiprocessors() { return 4; }
inline int host_capability = 87;  // of the GPU that the host stands for
inline int compute_capability() { return host_capability; }

struct Half {
  uint16_t bits;
};

inline float widened(Half half) {
  const uint32_t sign = static_cast<uint32_t>(half.bits & 0x8000) << 16;
  const uint32_t exponent = half.bits >> 10 & 31, fraction = half.bits & 1023;
  if (exponent == 0) {
    const float tiny = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -tiny : tiny;
  }
  const uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounded to even, as hardware does.
inline Half half_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  uint32_t half;
  if (bits > 0x7f800000) {
    half = 0x7fff;  // not a number
  } else if (bits >= 0x477ff000) {  // 65520: halfway to what comes after the largest half
    half = 0x7c00;
  } else if (bits < 0x38800000) {  // below 2^-14, the smallest that is normal
    half = static_cast<uint32_t>(std::rint(std::fabs(value) * 0x1p24f));
  } else {
    half = ((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112 << 10);
  }
  return {static_cast<uint16_t>(sign | half)};
}

struct Bfloat {
  uint16_t bits;
};

inline float widened(Bfloat value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// Rounded to even, as hardware does.
inline Bfloat bfloat_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};  // not a number
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// The sum of products of four bytes each, and of `sum`.
inline int __dp4a(int a, int b, int sum) {
  for (int byte = 0; byte < 4; ++byte) {
    sum += static_cast<int8_t>(a >> 8 * byte) * static_cast<int8_t>(b >> 8 * byte);
  }
  return sum;
}

// Likewise of bytes without a sign.
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
  for (int byte = 0; byte < 4; ++byte) sum += (a >> 8 * byte & 255) * (b >> 8 * byte & 255);
  return sum;
}

#else

// Of the GPU that is in use.
inline int multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count > 0 ? count : 1;
}

// Of the GPU that is in use, times ten: 87 is SM 8.7.
inline int compute_capability() {
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return 10 * major + minor;
}

constexpr int ROOM_UNASKED = 48 << 10;  // bytes of shared memory that every kernel may have

using Half = __half;

__device__ __forceinline__ float widened(Half half) { return __half2float(half); }
__device__ __forceinline__ Half half_of(float value) { return __float2half_rn(value); }

using Bfloat = __nv_bfloat16;

__device__ __forceinline__ float widened(Bfloat value) { return __bfloat162float(value); }
__device__ __forceinline__ Bfloat bfloat_of(float value) { return __float2bfloat16_rn(value); }

template <int threads, class Phase>
__device__ __forceinline__ void each_thread(const Phase& phase) {
  phase(static_cast<int>(threadIdx.x));
  __syncthreads();
}

template <class T, int threads>
struct PerThread {
  T value;
  __device__ __forceinline__ T& operator[](int) { return value; }
};

template <int threads, int together = 32, int room = 0, class... Parameters>
int launch(void (*kernel)(Parameters...), dim3 blocks, Stream stream,
           std::common_type_t<Parameters>... arguments) {
  if (!blocks.x || !blocks.y || !blocks.z) return 0;
  void* pointers[] = {&arguments...};
  const auto* code = reinterpret_cast<const void*>(kernel);
  if constexpr (room > ROOM_UNASKED) {
    const cudaError_t error =
        cudaFuncSetAttribute(code, cudaFuncAttributeMaxDynamicSharedMemorySize, room);
    if (error) return static_cast<int>(error);
  }
  return static_cast<int>(cudaLaunchKernel(code, blocks, dim3(threads), pointers, room,
                                           static_cast<cudaStream_t>(stream)));
}

#endif

__device__ __forceinline__ float widened(float value) { return value; }

}  // namespace dqx
