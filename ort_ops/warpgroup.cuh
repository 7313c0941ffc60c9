// What a warpgroup does together: four warps whose products run beside them (wgmma, SM 90 alone), on
// a GPU that is compiled for as sm_90a and, as C++ with -DDQX_ON_CPU, on the host.
//
// `each_group<N>([&](int group) { … })` is a phase (on_cpu.h) whose body is written for a warpgroup,
// as each_warp's is for a warp (warp.cuh); `each_member(group, [&](int thread) { … })` is what its
// 128 threads do alone. Such a kernel is started by `launch<N, 128, bytes>`.
//
// Products are asynchronous: what they read, registers and shared memory, stays as it is until they
// have been waited for; so do their sums. On the host they are made at once. Under -DDQX_ON_THREADS
// they are made when they are waited for, which shows what is overwritten too early; or at once
// where copies are late, which shows what is read too early.
#pragma once

#include "warp.cuh"

// `slots`: `count` of `Slot` in shared memory, more than a kernel may declare.
#ifdef DQX_ON_CPU
#define DQX_SLOTS(Slot, slots, count) \
  __shared__ Slot slots##_held[count]; \
  Slot* slots = slots##_held
#else
#define DQX_SLOTS(Slot, slots, count) \
  extern __shared__ __align__(1024) unsigned char slots##_held[]; \
  Slot* slots = reinterpret_cast<Slot*>(slots##_held)
#endif

namespace dqx {
namespace {

constexpr int GROUP = 128;  // threads

// A tile of shared memory as wgmma is told of it: rows of `row_bytes`, 8 of them after another.
struct Described {
  uint64_t bits;
#ifdef DQX_ON_CPU
  const char* tile;  // the host's addresses are longer than those that `bits` has
  uint32_t at;       // the address of `tile` there
#endif
};

constexpr uint32_t SHARED_ADDRESSES = 0x3ffff;  // 18 bits, without the last 4

// The bits for a tile at `place`, whose chunks of 16 bytes lie so that 8 rows meet no bank twice:
// bits 4 … of an address are those of the chunk, exclusive-or bits 7 … . Tiles begin at multiples
// of 8 rows.
template <int row_bytes>
__device__ __forceinline__ uint64_t descriptor(uint32_t place) {
  static_assert(row_bytes == 32 || row_bytes == 64 || row_bytes == 128, "what wgmma can swizzle");
  constexpr uint64_t swizzle = row_bytes == 128 ? 1 : row_bytes == 64 ? 2 : 3;
  constexpr uint64_t eight_rows = 8 * row_bytes / 16;
  return (place & SHARED_ADDRESSES) >> 4 | uint64_t{1} << 16 | eight_rows << 32 | swizzle << 62;
}

// The same rows from byte `bytes` of each on.
__device__ __forceinline__ Described moved(Described tile, int bytes) {
  tile.bits += static_cast<uint64_t>(bytes / 16);
  return tile;
}

#ifdef DQX_ON_CPU

template <int row_bytes>
Described described(const void* tile) {
  const auto at = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(tile) & SHARED_ADDRESSES);
  return {descriptor<row_bytes>(at), static_cast<const char*>(tile), at};
}

// Byte k of row `row`, found by what the bits say.
inline int8_t byte_of(const Described& from, int row, int k) {
  const auto start = static_cast<uint32_t>(from.bits & 0x3fff) << 4;
  const auto eight_rows = static_cast<uint32_t>(from.bits >> 32 & 0x3fff) << 4;
  const auto row_bytes = 256u >> (from.bits >> 62);
  const auto i = static_cast<uint32_t>(row);
  uint32_t place = start + i / 8 * eight_rows + i % 8 * row_bytes + static_cast<uint32_t>(k);
  place ^= (place >> 7 & (row_bytes / 16 - 1)) << 4;
  return static_cast<int8_t>(from.tile[(place - from.at) & SHARED_ADDRESSES]);
}

#ifdef DQX_ON_THREADS
inline thread_local Copier products;

template <int threads, class Phase>
void each_group(const Phase& phase) {
  phase(place_in_team);
}

template <class Work>
void each_member(int group, const Work& work) {
  for (int step = 0; step < GROUP; ++step) {
    lane_at_work = group * GROUP + turn(step, GROUP);
    work(lane_at_work);
  }
}

template <class Product>
void start_product(const Product& product) {
  if (late_copies) {
    product();
  } else {
    products.open.push_back(product);
  }
}
inline void close_products() { products.closed.push_back(std::exchange(products.open, {})); }
template <int open>
void wait_for_products() {
  make_copies(products, open);
}

#else

template <int threads, class Phase>
void each_group(const Phase& phase) {
  for (int group = 0; group < threads / GROUP; ++group) phase(group);
}

template <class Work>
void each_member(int group, const Work& work) {
  for (int member = 0; member < GROUP; ++member) work(group * GROUP + member);
}

template <class Product>
void start_product(const Product& product) {
  product();
}
inline void close_products() {}
template <int open>
void wait_for_products() {}

#endif

inline void open_products() {}
inline void hand_over() {}
template <int count>
void settle(int (&)[count]) {}

template <int columns, class A, class Sums>
void multiply_group(int group, const A& a, const Described& b, const Sums& sums) {
  start_product([=] {
    int8_t right[columns][32];
    for (int n = 0; n < columns; ++n) {
      for (int k = 0; k < 32; ++k) right[n][k] = byte_of(b, n, k);
    }
    for (int warp = 0; warp < 4; ++warp) {
      const int first = group * GROUP + warp * 32;
      for (int row = 0; row < 16; ++row) {
        int8_t left[32];
        for (int k = 0; k < 32; ++k) {
          const Quad& quad = a(first + row % 8 * 4 + k % 16 / 4);
          left[k] = static_cast<int8_t>(quad.word[row / 8 + k / 16 * 2] >> k % 4 * 8);
        }
        for (int n = 0; n < columns; ++n) {
          int sum = 0;
          for (int k = 0; k < 32; ++k) sum += left[k] * right[n][k];
          sums(first + row % 8 * 4 + n % 8 / 2)[n / 8 * 4 + row / 8 * 2 + n % 2] += sum;
        }
      }
    }
  });
}

#else

template <int row_bytes>
__device__ __forceinline__ Described described(const void* tile) {
  return {descriptor<row_bytes>(static_cast<uint32_t>(__cvta_generic_to_shared(tile)))};
}

template <int threads, class Phase>
__device__ __forceinline__ void each_group(const Phase& phase) {
  phase(static_cast<int>(threadIdx.x) / GROUP);
}

template <class Work>
__device__ __forceinline__ void each_member(int, const Work& work) {
  work(static_cast<int>(threadIdx.x));
}

// nvcc's pass for the host has no GPU, and instances of kernels name what follows
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What this thread has written to shared memory, copies included that it has waited for, is seen by
// products that begin behind the next barrier.
__device__ __forceinline__ void hand_over() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Registers that were written are seen by the products that follow.
__device__ __forceinline__ void open_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// All products that were started since the last call are one step that can be waited for.
__device__ __forceinline__ void close_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most `open` steps of this group are under way.
template <int open>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(open) : "memory");
}

// Sums whose products have been waited for: nothing that reads them is moved to before that.
template <int count>
__device__ __forceinline__ void settle(int (&sums)[count]) {
  DQX_UNROLL
  for (int i = 0; i < count; ++i) asm volatile("" : "+r"(sums[i])::"memory");
}

// Sums of 16, 32, 64 and 128 columns: wgmma takes each of its registers by name.
#define DQX_EIGHT(sums, i) \
  "+r"(sums[i]), "+r"(sums[i + 1]), "+r"(sums[i + 2]), "+r"(sums[i + 3]), "+r"(sums[i + 4]), \
      "+r"(sums[i + 5]), "+r"(sums[i + 6]), "+r"(sums[i + 7])

__device__ __forceinline__ void add_products(const int (&a)[4], uint64_t b, int (&sums)[8]) {
  asm volatile(
      "{.reg .pred add;\n"
      "setp.eq.u32 add, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7}, "
      "{%8, %9, %10, %11}, %12, add;}\n"
      : DQX_EIGHT(sums, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void add_products(const int (&a)[4], uint64_t b, int (&sums)[16]) {
  asm volatile(
      "{.reg .pred add;\n"
      "setp.eq.u32 add, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "{%16, %17, %18, %19}, %20, add;}\n"
      : DQX_EIGHT(sums, 0), DQX_EIGHT(sums, 8)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void add_products(const int (&a)[4], uint64_t b, int (&sums)[32]) {
  asm volatile(
      "{.reg .pred add;\n"
      "setp.eq.u32 add, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, add;}\n"
      : DQX_EIGHT(sums, 0), DQX_EIGHT(sums, 8), DQX_EIGHT(sums, 16), DQX_EIGHT(sums, 24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void add_products(const int (&a)[4], uint64_t b, int (&sums)[64]) {
  asm volatile(
      "{.reg .pred add;\n"
      "setp.eq.u32 add, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, add;}\n"
      : DQX_EIGHT(sums, 0), DQX_EIGHT(sums, 8), DQX_EIGHT(sums, 16), DQX_EIGHT(sums, 24),
        DQX_EIGHT(sums, 32), DQX_EIGHT(sums, 40), DQX_EIGHT(sums, 48), DQX_EIGHT(sums, 56)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef DQX_EIGHT

// sums (64 rows, columns) += a (64, 32) · b (32, columns), of bytes. a(thread) is what a thread has of
// 16 rows a warp, as in mma.sync.m16n8k32; b is stored by columns; sums(thread) has of each 8
// columns two in a row of row lane / 4, and two of 8 rows below, from column 2 (lane % 4) on.
template <int columns, class A, class Sums>
__device__ __forceinline__ void multiply_group(int, const A& a, const Described& b,
                                               const Sums& sums) {
  const int thread = static_cast<int>(threadIdx.x);
  add_products(a(thread).word, b.bits, sums(thread));
}

#endif
#endif

}  // namespace
}  // namespace dqx
