// What a warp does together, on a GPU and, compiled as C++ with -DDQX_ON_CPU, on the host.
//
// `each_warp<N>([&](int warp) { … })` is a phase (on_cpu.h) whose body is written for a warp:
// `each_lane(warp, [&](int thread) { … })` is what its threads do alone, `load_matrices`,
// `multiply_add` and its like, `exchange` and `any_lane` what they do together, on what they keep
// PerThread. There is no barrier at its end: shared memory that it read is written again
// only after an `each_thread`.
#pragma once

#include "on_cpu.h"

#ifdef DQX_ON_CPU
#include <atomic>
#endif

namespace dqx {

#ifdef DQX_ON_CPU
inline std::atomic<long> bank_conflicts{0};  // rows that load_matrices met on banks in use
#endif

namespace {

// A thread's part of a matrix.
struct Quad {
  int word[4];
};
struct FloatQuad {
  float at[4];
};

#ifdef DQX_ON_CPU

struct uint4 {
  uint32_t x, y, z, w;
};

inline uint32_t __byte_perm(uint32_t a, uint32_t b, unsigned pick) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t picked = 0;
  for (int byte = 0; byte < 4; ++byte) {
    picked |= static_cast<uint32_t>(bytes >> 8 * (pick >> 4 * byte & 7) & 255) << 8 * byte;
  }
  return picked;
}

inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float __fmul_rn(float a, float b) { return a * b; }

inline uint32_t halves_of(float low, float high) {
  return static_cast<uint32_t>(half_of(high).bits) << 16 | half_of(low).bits;
}
inline uint32_t bfloats_of(float low, float high) {
  return static_cast<uint32_t>(bfloat_of(high).bits) << 16 | bfloat_of(low).bits;
}

// One of two floats that stand in a word.
template <class T>
float float_in(uint32_t pair, int i) {
  return widened(T{static_cast<uint16_t>(pair >> 16 * i)});
}

inline uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
  const auto at = [](uint32_t pair, int i) { return float_in<Half>(pair, i); };
  return halves_of(at(a, 0) * at(b, 0) + at(c, 0), at(a, 1) * at(b, 1) + at(c, 1));
}
inline uint32_t fma_bfloats(uint32_t a, uint32_t b, uint32_t c) {
  const auto at = [](uint32_t pair, int i) { return float_in<Bfloat>(pair, i); };
  return bfloats_of(at(a, 0) * at(b, 0) + at(c, 0), at(a, 1) * at(b, 1) + at(c, 1));
}

inline uint32_t masked_xor(uint32_t a, uint32_t mask, uint32_t bits) { return (a & mask) ^ bits; }

inline void copy_now(void* to, const void* from, bool there) {
  if (there) {
    std::memcpy(to, from, 16);
  } else {
    std::memset(to, 0, 16);
  }
}

#ifdef DQX_ON_THREADS

template <int threads, class Phase>
void each_warp(const Phase& phase) {
  const int warps = share_of_team / 32;
  for (int i = 0; i < warps; ++i) phase(place_in_team * warps + i);
}

template <class Work>
void each_lane(int warp, const Work& work) {
  for (int step = 0; step < 32; ++step) {
    lane_at_work = warp * 32 + turn(step, 32);
    work(lane_at_work);
  }
}

inline void copy_chunk(void* to, const void* from, bool there) {
  start_copy([=] { copy_now(to, from, there); });
}
template <class T>
void copy_one(T* to, const T* from, bool there) {
  start_copy([=] { *to = there ? *from : T{}; });
}
inline void close_copies() { close_started(); }
template <int open>
void wait_for_copies() {
  make_copies(open);
}

#else

template <int threads, class Phase>
void each_warp(const Phase& phase) {
  for (int warp = 0; warp < threads / 32; ++warp) phase(warp);
}

template <class Work>
void each_lane(int warp, const Work& work) {
  for (int lane = 0; lane < 32; ++lane) work(warp * 32 + lane);
}

inline void copy_chunk(void* to, const void* from, bool there) { copy_now(to, from, there); }
template <class T>
void copy_one(T* to, const T* from, bool there) {
  *to = there ? *from : T{};
}
inline void close_copies() {}
template <int open>
void wait_for_copies() {}

#endif

// Counts those of 8 rows of 16 bytes that one step of shared memory cannot read.
template <int threads>
void count_conflicts(int warp, PerThread<const void*, threads>& rows) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    const void* in_use[8] = {};
    for (int row = 0; row < 8; ++row) {
      const void* place = rows[warp * 32 + matrix * 8 + row];
      const void*& held = in_use[reinterpret_cast<uintptr_t>(place) / 16 % 8];
      if (held && held != place) ++bank_conflicts;
      held = place;
    }
  }
}

template <int threads>
void load_matrices(int warp, PerThread<const void*, threads>& rows,
                   PerThread<Quad, threads>& to) {
  count_conflicts(warp, rows);
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const void* row = rows[warp * 32 + matrix * 8 + lane / 4];
      std::memcpy(&to[warp * 32 + lane].word[matrix],
                  static_cast<const char*>(row) + lane % 4 * 4, 4);
    }
  }
}

template <int threads>
void load_turned_matrices(int warp, PerThread<const void*, threads>& rows,
                          PerThread<Quad, threads>& to) {
  count_conflicts(warp, rows);
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) {
        const void* row = rows[warp * 32 + matrix * 8 + lane % 4 * 2 + i];
        std::memcpy(&pair[i], static_cast<const char*>(row) + lane / 4 * 2, 2);
      }
      std::memcpy(&to[warp * 32 + lane].word[matrix], pair, 4);
    }
  }
}

template <class Left, class Right, int threads, class B, class Sums>
void multiply_bytes(int warp, PerThread<Quad, threads>& a, const B& b, const Sums& sums) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int c = 0; c < 4; ++c) {
      const int row = lane / 4 + c / 2 * 8, column = lane % 4 * 2 + c % 2;
      int sum = 0;
      for (int k = 0; k < 32; ++k) {
        const int left = a[warp * 32 + row % 8 * 4 + k % 16 / 4].word[row / 8 + k / 16 * 2];
        const auto right = static_cast<int>(b(warp * 32 + column * 4 + k % 16 / 4, k / 16));
        sum += static_cast<Left>(left >> k % 4 * 8) * static_cast<Right>(right >> k % 4 * 8);
      }
      sums(warp * 32 + lane).word[c] += sum;
    }
  }
}

template <int threads, class B, class Sums>
void multiply_add_nibbles(int warp, PerThread<Quad, threads>& a, const B& b, const Sums& sums) {
  const auto code = [](int word, int i) { return ((word >> 4 * i & 15) ^ 8) - 8; };
  for (int lane = 0; lane < 32; ++lane) {
    for (int c = 0; c < 4; ++c) {
      const int row = lane / 4 + c / 2 * 8, column = lane % 4 * 2 + c % 2;
      int sum = 0;
      for (int k = 0; k < 64; ++k) {
        const int left = a[warp * 32 + row % 8 * 4 + k % 32 / 8].word[row / 8 + k / 32 * 2];
        const auto right = static_cast<int>(b(warp * 32 + column * 4 + k % 32 / 8, k / 32));
        sum += code(left, k % 8) * code(right, k % 8);
      }
      sums(warp * 32 + lane).word[c] += sum;
    }
  }
}

template <int threads, class B, class Sums>
void multiply_add(int warp, PerThread<Quad, threads>& a, const B& b, const Sums& sums) {
  multiply_bytes<int8_t, int8_t>(warp, a, b, sums);
}
template <int threads, class B, class Sums>
void multiply_add_unsigned(int warp, PerThread<Quad, threads>& a, const B& b, const Sums& sums) {
  multiply_bytes<uint8_t, uint8_t>(warp, a, b, sums);
}
template <int threads, class B, class Sums>
void multiply_add_mixed(int warp, PerThread<Quad, threads>& a, const B& b, const Sums& sums) {
  multiply_bytes<uint8_t, int8_t>(warp, a, b, sums);
}

// Hardware adds in an order of its own.
template <class T, int threads, class B, class Sums>
void multiply_floats(int warp, PerThread<Quad, threads>& a, const B& b, const Sums& sums) {
  const auto half = [](int word, int i) { return float_in<T>(static_cast<uint32_t>(word), i); };
  for (int lane = 0; lane < 32; ++lane) {
    for (int c = 0; c < 4; ++c) {
      const int row = lane / 4 + c / 2 * 8, column = lane % 4 * 2 + c % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k) {
        const int left = a[warp * 32 + row % 8 * 4 + k % 8 / 2].word[row / 8 + k / 8 * 2];
        const auto right = static_cast<int>(b(warp * 32 + column * 4 + k % 8 / 2, k / 8));
        sum += half(left, k % 2) * half(right, k % 2);
      }
      sums(warp * 32 + lane).at[c] += sum;
    }
  }
}

template <int threads, class B, class Sums>
void multiply_add_halves(int warp, PerThread<Quad, threads>& a, const B& b, const Sums& sums) {
  multiply_floats<Half>(warp, a, b, sums);
}
template <int threads, class B, class Sums>
void multiply_add_bfloats(int warp, PerThread<Quad, threads>& a, const B& b, const Sums& sums) {
  multiply_floats<Bfloat>(warp, a, b, sums);
}

template <class T, int threads>
void exchange(int warp, int mask, PerThread<T, threads>& from, PerThread<T, threads>& to) {
  for (int lane = 0; lane < 32; ++lane) to[warp * 32 + lane] = from[warp * 32 + (lane ^ mask)];
}

template <int threads>
bool any_lane(int warp, PerThread<bool, threads>& flags) {
  bool any = false;
  for (int lane = 0; lane < 32; ++lane) any = any || flags[warp * 32 + lane];
  return any;
}

#else

template <int threads, class Phase>
__device__ __forceinline__ void each_warp(const Phase& phase) {
  phase(static_cast<int>(threadIdx.x) / 32);
}

template <class Work>
__device__ __forceinline__ void each_lane(int, const Work& work) {
  work(static_cast<int>(threadIdx.x));
}

// Starts to copy 16 bytes of device memory into shared memory, or zeros.
__device__ __forceinline__ void copy_chunk(void* to, const void* from, bool there) {
  const auto place = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from),
               "r"(there ? 16 : 0));
}

// Likewise of one value of 4 or 8 bytes.
template <class T>
__device__ __forceinline__ void copy_one(T* to, const T* from, bool there) {
  const auto place = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(place), "l"(from),
               "n"(sizeof(T)), "r"(there ? static_cast<int>(sizeof(T)) : 0));
}

// All copies that were started since the last call are one step that can be waited for.
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;"); }

// Until at most `open` steps of this thread are under way.
template <int open>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(open));
}

// Four matrices of 8 rows by 16 bytes, lane 8 m + r says where row r of matrix m lies: a lane
// gets bytes 4 (lane % 4) … of row lane / 4 of each (ldmatrix).
template <int threads>
__device__ __forceinline__ void load_matrices(int warp, PerThread<const void*, threads>& rows,
                                              PerThread<Quad, threads>& to) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto place = static_cast<unsigned>(__cvta_generic_to_shared(rows[thread]));
  int(&word)[4] = to[thread].word;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(place));
}

// The same four matrices, turned, of 8 rows by 8 pairs of bytes: a lane gets pair lane / 4 of rows
// 2 (lane % 4) and the next.
template <int threads>
__device__ __forceinline__ void load_turned_matrices(int, PerThread<const void*, threads>& rows,
                                                     PerThread<Quad, threads>& to) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto place = static_cast<unsigned>(__cvta_generic_to_shared(rows[thread]));
  int(&word)[4] = to[thread].word;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(place));
}

// Two floats as halves in a word.
__device__ __forceinline__ uint32_t halves_of(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

__device__ __forceinline__ uint32_t bfloats_of(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

// (a & mask) ^ bits in one instruction, which takes one constant: the other is kept in a register.
__device__ __forceinline__ uint32_t masked_xor(uint32_t a, uint32_t mask, uint32_t bits) {
  uint32_t word;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(word) : "r"(a), "r"(mask), "r"(bits));
  return word;
}

// a · b + c of both floats of a word.
__device__ __forceinline__ uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t word;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "r"(c));
  return word;
}
__device__ __forceinline__ uint32_t fma_bfloats(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t word;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "r"(c));
  return word;
}

// sums (16 rows, 8 columns) += a (16, 32) · b (32, 8), of bytes; b(thread, half) and sums(thread)
// are what threads keep (mma.sync.m16n8k32).
template <int threads, class B, class Sums>
__device__ __forceinline__ void multiply_add(int warp, PerThread<Quad, threads>& a, const B& b,
                                             const Sums& sums) {
  const int thread = static_cast<int>(threadIdx.x);
  const int(&x)[4] = a[thread].word;
  int(&sum)[4] = sums(thread).word;
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(b(thread, 0)), "r"(b(thread, 1)));
}

// The same of bytes without a sign.
template <int threads, class B, class Sums>
__device__ __forceinline__ void multiply_add_unsigned(int warp, PerThread<Quad, threads>& a,
                                                      const B& b, const Sums& sums) {
  const int thread = static_cast<int>(threadIdx.x);
  const int(&x)[4] = a[thread].word;
  int(&sum)[4] = sums(thread).word;
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(b(thread, 0)), "r"(b(thread, 1)));
}

// The same of bytes without a sign in a, with one in b.
template <int threads, class B, class Sums>
__device__ __forceinline__ void multiply_add_mixed(int, PerThread<Quad, threads>& a, const B& b,
                                                   const Sums& sums) {
  const int thread = static_cast<int>(threadIdx.x);
  const int(&x)[4] = a[thread].word;
  int(&sum)[4] = sums(thread).word;
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(b(thread, 0)), "r"(b(thread, 1)));
}

// sums (16, 8) += a (16, 64) · b (64, 8), of codes of 4 bits (mma.sync.m16n8k64). GPUs from SM 90
// on have no tensor cores for them: nothing happens there.
template <int threads, class B, class Sums>
__device__ __forceinline__ void multiply_add_nibbles(int, PerThread<Quad, threads>& a, const B& b,
                                                     const Sums& sums) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  const int thread = static_cast<int>(threadIdx.x);
  const int(&x)[4] = a[thread].word;
  int(&sum)[4] = sums(thread).word;
  asm volatile(
      "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(b(thread, 0)), "r"(b(thread, 1)));
#endif
}

// sums (16, 8) += a (16, 16) · b (16, 8), of halves, summed in floats (mma.sync.m16n8k16).
template <int threads, class B, class Sums>
__device__ __forceinline__ void multiply_add_halves(int, PerThread<Quad, threads>& a, const B& b,
                                                    const Sums& sums) {
  const int thread = static_cast<int>(threadIdx.x);
  const int(&x)[4] = a[thread].word;
  float(&sum)[4] = sums(thread).at;
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(b(thread, 0)), "r"(b(thread, 1)));
}

// The same of bfloat16.
template <int threads, class B, class Sums>
__device__ __forceinline__ void multiply_add_bfloats(int, PerThread<Quad, threads>& a, const B& b,
                                                     const Sums& sums) {
  const int thread = static_cast<int>(threadIdx.x);
  const int(&x)[4] = a[thread].word;
  float(&sum)[4] = sums(thread).at;
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(b(thread, 0)), "r"(b(thread, 1)));
}

// Gives each lane what the lane has whose number differs in the bits of `mask`.
template <class T, int threads>
__device__ __forceinline__ void exchange(int, int mask, PerThread<T, threads>& from,
                                         PerThread<T, threads>& to) {
  to.value = __shfl_xor_sync(0xffffffffu, from.value, mask);
}

template <int threads>
__device__ __forceinline__ bool any_lane(int, PerThread<bool, threads>& flags) {
  return __any_sync(0xffffffffu, flags.value);
}

#endif

}  // namespace
}  // namespace dqx
