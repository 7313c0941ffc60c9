// Plain C++: eight lanes that a compiler may or may not turn into vectors.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

struct Machine {
  static constexpr int LANES = 8, VECTORS = 1, ROWS = 6;
  static constexpr int BYTE_OFFSET = 128;  // of 8-bit weights, that dot() leaves in place
  struct I {
    int32_t x[LANES];
  };
  struct F {
    float x[LANES];
  };

  template <class R, class Each>
  static R lanes(Each each) {
    R r;
    for (int n = 0; n < LANES; ++n) r.x[n] = each(n);
    return r;
  }
  static I splat(int32_t x) {
    return lanes<I>([&](int) { return x; });
  }
  static I load(const void* from) {
    I r;
    std::memcpy(&r, from, sizeof r);
    return r;
  }
  static void store(void* to, const I& x) { std::memcpy(to, &x, sizeof x); }
  static I quad(const int8_t* from) {
    int32_t four;
    std::memcpy(&four, from, 4);
    return splat(four);
  }
  static I low(const I& x) {
    return lanes<I>([&](int n) { return x.x[n] & 0x0f0f0f0f; });
  }
  static I high(const I& x) {
    return lanes<I>([&](int n) {
      return static_cast<int32_t>(static_cast<uint32_t>(x.x[n]) >> 4 & 0x0f0f0f0fu);
    });
  }
  template <int BITS>
  static I dot(I sum, const I& weights, const I& activations) {
    uint8_t w[4 * LANES];
    int8_t a[4 * LANES];
    std::memcpy(w, &weights, sizeof w);
    std::memcpy(a, &activations, sizeof a);
    for (int n = 0; n < LANES; ++n) {
      for (int i = 0; i < 4; ++i) sum.x[n] += w[4 * n + i] * a[4 * n + i];
    }
    return sum;
  }
  static I add(const I& a, const I& b) {
    return lanes<I>([&](int n) { return a.x[n] + b.x[n]; });
  }
  static I multiply(const I& a, const I& b) {
    return lanes<I>([&](int n) { return a.x[n] * b.x[n]; });
  }
  static I times_256(const I& x) {
    return lanes<I>([&](int n) { return x.x[n] * 256; });
  }
  static F to_floats(const I& x) {
    return lanes<F>([&](int n) { return static_cast<float>(x.x[n]); });
  }
  static F splat_float(float x) {
    return lanes<F>([&](int) { return x; });
  }
  static F load_floats(const float* from) {
    F r;
    std::memcpy(&r, from, sizeof r);
    return r;
  }
  static void store_floats(float* to, const F& x) { std::memcpy(to, &x, sizeof x); }
  static F multiply(const F& a, const F& b) {
    return lanes<F>([&](int n) { return a.x[n] * b.x[n]; });
  }
  static F multiply_add(const F& a, const F& b, const F& c) {
    return lanes<F>([&](int n) { return a.x[n] * b.x[n] + c.x[n]; });
  }
};

}  // namespace
