// 256-bit vectors, with or without VNNI.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Machine {
  static constexpr int LANES = 8, VECTORS = 2, ROWS = 6;
  static constexpr int BYTE_OFFSET = 128;  // of 8-bit weights, that dot() leaves in place
  using I = __m256i;
  using F = __m256;

  static I splat(int32_t x) { return _mm256_set1_epi32(x); }
  static I load(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
  }
  static void store(void* to, I x) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }
  static I quad(const int8_t* from) {
    int32_t four;
    __builtin_memcpy(&four, from, 4);
    return _mm256_set1_epi32(four);
  }
  static I low(I x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
  static I high(I x) { return low(_mm256_srli_epi16(x, 4)); }
#ifdef __AVXVNNI__
  template <int BITS>
  static I dot(I sum, I weights, I activations) {
    return _mm256_dpbusd_avx_epi32(sum, weights, activations);
  }
#else
  // Pairs of products go through 16 bits: 2 * 15 * 128 fits, 2 * 255 * 128 does not, so a byte is
  // taken as 16 times its high plus its low nibble.
  template <int BITS>
  static I dot(I sum, I weights, I activations) {
    if constexpr (BITS == 4) return add(sum, pairs(weights, activations, 1));
    const I above = pairs(high(weights), activations, 16);
    return add(sum, add(above, pairs(low(weights), activations, 1)));
  }
  static I pairs(I weights, I activations, int16_t times) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(weights, activations),
                             _mm256_set1_epi16(times));
  }
#endif
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
  static I multiply(I a, I b) { return _mm256_mullo_epi32(a, b); }
  static I times_256(I x) { return _mm256_slli_epi32(x, 8); }
  static F to_floats(I x) { return _mm256_cvtepi32_ps(x); }
  static F splat_float(float x) { return _mm256_set1_ps(x); }
  static F load_floats(const float* from) { return _mm256_loadu_ps(from); }
  static void store_floats(float* to, F x) { _mm256_storeu_ps(to, x); }
  static F multiply(F a, F b) { return _mm256_mul_ps(a, b); }
  static F multiply_add(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
};

}  // namespace
