// 128-bit vectors of Arm with dot products, mixed in sign (I8MM) or of signed bytes alone.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace {

struct Machine {
  static constexpr int LANES = 4, VECTORS = 4, ROWS = 6;
  using I = int32x4_t;
  using F = float32x4_t;

  static I splat(int32_t x) { return vdupq_n_s32(x); }
  static I load(const void* from) {
    return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(from)));
  }
  static void store(void* to, I x) {
    vst1q_u8(static_cast<uint8_t*>(to), vreinterpretq_u8_s32(x));
  }
  static I quad(const int8_t* from) {
    int32_t four;
    __builtin_memcpy(&four, from, 4);
    return vdupq_n_s32(four);
  }
  static I low(I x) {
    return vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(x), vdupq_n_u8(15)));
  }
  static I high(I x) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(x), 4)); }
#ifdef __ARM_FEATURE_MATMUL_INT8
  static constexpr int BYTE_OFFSET = 128;
  template <int BITS>
  static I dot(I sum, I weights, I activations) {
    return vusdotq_s32(sum, vreinterpretq_u8_s32(weights), vreinterpretq_s8_s32(activations));
  }
#else
  // Both operands are signed: nibbles from 0 to 15 fit, bytes lose their offset before the product.
  static constexpr int BYTE_OFFSET = 0;
  template <int BITS>
  static I dot(I sum, I weights, I activations) {
    const uint8x16_t codes = vreinterpretq_u8_s32(weights);
    const uint8x16_t taken = BITS == 8 ? veorq_u8(codes, vdupq_n_u8(128)) : codes;
    return vdotq_s32(sum, vreinterpretq_s8_u8(taken), vreinterpretq_s8_s32(activations));
  }
#endif
  static I add(I a, I b) { return vaddq_s32(a, b); }
  static I multiply(I a, I b) { return vmulq_s32(a, b); }
  static I times_256(I x) { return vshlq_n_s32(x, 8); }
  static F to_floats(I x) { return vcvtq_f32_s32(x); }
  static F splat_float(float x) { return vdupq_n_f32(x); }
  static F load_floats(const float* from) { return vld1q_f32(from); }
  static void store_floats(float* to, F x) { vst1q_f32(to, x); }
  static F multiply(F a, F b) { return vmulq_f32(a, b); }
  static F multiply_add(F a, F b, F c) { return vfmaq_f32(c, a, b); }
};

}  // namespace
