// Codes of 4 and 8 bits as halves, without conversions: c + 8 or c + 128 stands in the last bits of
// 1024, or of 128 in bf16, where the last bit is worth 1; one multiply-add takes the rest away.
#pragma once

#include "../warp.cuh"

namespace dqx {
namespace {

// Byte `byte` of both words, each in a half; what stands beside it is anything.
__device__ __forceinline__ uint32_t byte_of_both(uint32_t first, uint32_t second, int byte) {
  return __byte_perm(first, second, 0x4400u + static_cast<unsigned>(byte) * 0x1111u);
}

// Of halves of one type: codes of two inputs, in the order of columns, as a word a column.
template <class T>
struct Pairs;

template <>
struct Pairs<Half> {
  // Eight columns of 4 bits.
  static __device__ __forceinline__ void widen_nibbles(uint32_t first, uint32_t second,
                                                       uint32_t* columns) {
    DQX_UNROLL
    for (int byte = 0; byte < 4; ++byte) {
      const uint32_t both = byte_of_both(first, second, byte);
      const uint32_t low = masked_xor(both, 0x000f000fu, 0x64086408u);   // 1024 + (8 + c)
      const uint32_t high = masked_xor(both, 0x00f000f0u, 0x64806480u);  // 1024 + 16 (8 + c)
      columns[2 * byte] = fma_halves(low, 0x3c003c00u, 0xe408e408u);       // * 1 - 1032
      columns[2 * byte + 1] = fma_halves(high, 0x2c002c00u, 0xd480d480u);  // / 16 - 72
    }
  }
  // Four columns of 8 bits.
  static __device__ __forceinline__ void widen_bytes(uint32_t first, uint32_t second,
                                                     uint32_t* columns) {
    DQX_UNROLL
    for (int byte = 0; byte < 4; ++byte) {
      const uint32_t both = byte_of_both(first, second, byte);
      const uint32_t moved = masked_xor(both, 0x00ff00ffu, 0x64806480u);   // 1024 + (128 + c)
      columns[byte] = fma_halves(moved, 0x3c003c00u, 0xe480e480u);  // * 1 - 1152
    }
  }
  template <int threads, class B, class Sums>
  static __device__ __forceinline__ void multiply(int warp, PerThread<Quad, threads>& a, const B& b,
                                                  const Sums& sums) {
    multiply_add_halves(warp, a, b, sums);
  }
};

template <>
struct Pairs<Bfloat> {
  static __device__ __forceinline__ void widen_nibbles(uint32_t first, uint32_t second,
                                                       uint32_t* columns) {
    DQX_UNROLL
    for (int byte = 0; byte < 4; ++byte) {
      const uint32_t both = byte_of_both(first, second, byte);
      DQX_UNROLL
      for (int high = 0; high < 2; ++high) {
        const uint32_t moved = masked_xor(both >> 4 * high, 0x000f000fu, 0x43084308u);
        // 128 + (8 + c), * 1 - 136
        columns[2 * byte + high] = fma_bfloats(moved, 0x3f803f80u, 0xc308c308u);
      }
    }
  }
  // 8 bits do not fit behind 128: by way of 2^23 + (128 + c) in fp32.
  static __device__ __forceinline__ void widen_bytes(uint32_t first, uint32_t second,
                                                     uint32_t* columns) {
    const auto code = [](uint32_t moved, unsigned byte) {
      const auto bits = static_cast<int>(__byte_perm(moved, 0x4b000000u, 0x7440u | byte));
      return __int_as_float(bits) - 8388736.0f;
    };
    const uint32_t low = first ^ 0x80808080u, high = second ^ 0x80808080u;
    DQX_UNROLL
    for (unsigned byte = 0; byte < 4; ++byte) {
      columns[byte] = bfloats_of(code(low, byte), code(high, byte));
    }
  }
  template <int threads, class B, class Sums>
  static __device__ __forceinline__ void multiply(int warp, PerThread<Quad, threads>& a, const B& b,
                                                  const Sums& sums) {
    multiply_add_bfloats(warp, a, b, sums);
  }
};

}  // namespace
}  // namespace dqx
