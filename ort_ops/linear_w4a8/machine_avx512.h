// 512-bit vectors with VNNI: 64 products of bytes in one instruction.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Machine {
  static constexpr int LANES = 16, VECTORS = 4, ROWS = 6;
  static constexpr int BYTE_OFFSET = 128;  // of 8-bit weights, that dot() leaves in place
  using I = __m512i;
  using F = __m512;

  static I splat(int32_t x) { return _mm512_set1_epi32(x); }
  static I load(const void* from) { return _mm512_loadu_si512(from); }
  static void store(void* to, I x) { _mm512_storeu_si512(to, x); }
  static I quad(const int8_t* from) {
    int32_t four;
    __builtin_memcpy(&four, from, 4);
    return _mm512_set1_epi32(four);
  }
  static I low(I x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
  static I high(I x) { return low(_mm512_srli_epi16(x, 4)); }
  template <int BITS>
  static I dot(I sum, I weights, I activations) {
    return _mm512_dpbusd_epi32(sum, weights, activations);
  }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static I multiply(I a, I b) { return _mm512_mullo_epi32(a, b); }
  static I times_256(I x) { return _mm512_slli_epi32(x, 8); }
  static F to_floats(I x) { return _mm512_cvtepi32_ps(x); }
  static F splat_float(float x) { return _mm512_set1_ps(x); }
  static F load_floats(const float* from) { return _mm512_loadu_ps(from); }
  static void store_floats(float* to, F x) { _mm512_storeu_ps(to, x); }
  static F multiply(F a, F b) { return _mm512_mul_ps(a, b); }
  static F multiply_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace
