// The linear over the vector type V of one machine (see machine_*.h). Everything lies in an unnamed
// namespace: each machine's file is compiled with flags of its own, and the linker must not take a
// function of one for another.
#pragma once

#include <cmath>
#include <cstring>

#include "kernel.h"

// Sums must stay in registers: a loop over them that is left standing keeps them in memory.
#define DQX_UNROLL _Pragma("GCC unroll 16")

namespace {

using dqx::Activations;
using dqx::Chunk;
using dqx::PANEL;
using dqx::ROW_BLOCK;
using dqx::Weights;

constexpr int QUAD = 4 * PANEL;  // bytes of four inputs of a panel, unpacked; of eight, packed

// One chunk of one panel, for the rows of a tile.
struct Work {
  const int8_t* codes;      // of the first row; the low plane lies `plane` bytes behind
  int64_t row, plane;       // bytes
  const int32_t* sums;      // likewise
  int64_t sum_row, sum_plane;
  const uint8_t* weights;
  int padded;               // inputs
  int offset;               // of the weight codes, as far as dot products do not take it off
  const float* scales;      // [64], or null
  const int32_t* steps;     // [64], or null
  const float* activation_scales;  // of this chunk; stride `scale_row`; null: applied at the end
  int64_t scale_row;
  float* totals;            // [rows][64] floats or int32
};

template <class V>
inline typename V::I start(const Work& t, int row, int plane) {
  return V::splat(-t.offset * t.sums[row * t.sum_row + plane * t.sum_plane]);
}

// Dot products of ROWS rows with V::VECTORS vectors of outputs over a whole chunk.
// FUSED: weights are packed nibbles; otherwise bytes.
template <class V, int ROWS, int PLANES, int BITS, bool FUSED>
inline void products(const Work& t, int column, typename V::I (&sums)[ROWS * PLANES][V::VECTORS]) {
  constexpr int VECTORS = V::VECTORS;
  DQX_UNROLL
  for (int r = 0; r < ROWS * PLANES; ++r) {
    DQX_UNROLL
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = start<V>(t, r % ROWS, r / ROWS);
  }
  const uint8_t* weights = t.weights + column * 4;
  if constexpr (FUSED) {
    for (int k = 0; k < t.padded; k += 8, weights += QUAD) {
      DQX_UNROLL
      for (int v = 0; v < VECTORS; ++v) {
        const typename V::I both = V::load(weights + v * V::LANES * 4);
        const typename V::I low = V::low(both), high = V::high(both);
        DQX_UNROLL
        for (int r = 0; r < ROWS * PLANES; ++r) {
          const int8_t* a = t.codes + (r % ROWS) * t.row + (r / ROWS) * t.plane + k;
          sums[r][v] = V::template dot<BITS>(sums[r][v], low, V::quad(a));
          sums[r][v] = V::template dot<BITS>(sums[r][v], high, V::quad(a + 4));
        }
      }
    }
  } else {
    for (int k = 0; k < t.padded; k += 4, weights += QUAD) {
      typename V::I w[VECTORS];
      DQX_UNROLL
      for (int v = 0; v < VECTORS; ++v) w[v] = V::load(weights + v * V::LANES * 4);
      DQX_UNROLL
      for (int r = 0; r < ROWS * PLANES; ++r) {
        const typename V::I a =
            V::quad(t.codes + (r % ROWS) * t.row + (r / ROWS) * t.plane + k);
        DQX_UNROLL
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = V::template dot<BITS>(sums[r][v], w[v], a);
      }
    }
  }
}

template <class V, int ROWS, int PLANES, int BITS, bool FUSED>
void tile(const Work& t) {
  for (int column = 0; column < PANEL; column += V::LANES * V::VECTORS) {
    typename V::I sums[ROWS * PLANES][V::VECTORS];
    products<V, ROWS, PLANES, BITS, FUSED>(t, column, sums);
    DQX_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      DQX_UNROLL
      for (int v = 0; v < V::VECTORS; ++v) {
        const int place = column + v * V::LANES;
        float* total = t.totals + r * PANEL + place;
        typename V::I sum = sums[r][v];
        if constexpr (PLANES == 2) sum = V::add(V::times_256(sum), sums[ROWS + r][v]);
        if (t.steps != nullptr) {
          const typename V::I step = V::load(t.steps + place);
          V::store(total, V::add(V::load(total), V::multiply(sum, step)));
        } else {
          typename V::F scale = V::load_floats(t.scales + place);
          if (t.activation_scales != nullptr) {
            scale = V::multiply(scale, V::splat_float(t.activation_scales[r * t.scale_row]));
          }
          V::store_floats(total, V::multiply_add(V::to_floats(sum), scale,
                                                 V::load_floats(total)));
        }
      }
    }
  }
}

template <class V, int PLANES, int BITS, bool FUSED>
void tile_of(int rows, const Work& t) {
  switch (rows) {
    case 1: return tile<V, 1, PLANES, BITS, FUSED>(t);
    case 2: return tile<V, 2, PLANES, BITS, FUSED>(t);
    case 3: return tile<V, 3, PLANES, BITS, FUSED>(t);
    default: break;
  }
  if constexpr (PLANES == 1) {
    switch (rows) {
      case 4: return tile<V, 4, PLANES, BITS, FUSED>(t);
      case 5: return tile<V, 5, PLANES, BITS, FUSED>(t);
      default: return tile<V, 6, PLANES, BITS, FUSED>(t);
    }
  }
}

template <class V, bool FUSED>
void any_tile(int rows, int planes, int bits, const Work& t) {
  if constexpr (!FUSED) {
    if (bits == 8) {
      return planes == 1 ? tile_of<V, 1, 8, false>(rows, t) : tile_of<V, 2, 8, false>(rows, t);
    }
  }
  return planes == 1 ? tile_of<V, 1, 4, FUSED>(rows, t) : tile_of<V, 2, 4, FUSED>(rows, t);
}

// Nibbles of a chunk to bytes: eight inputs of a panel become two runs of four.
template <class V>
void unpack(const uint8_t* from, int padded, uint8_t* into) {
  for (int k = 0; k < padded; k += 8, from += QUAD, into += 2 * QUAD) {
    for (int at = 0; at < QUAD; at += V::LANES * 4) {
      const typename V::I both = V::load(from + at);
      V::store(into + at, V::low(both));
      V::store(into + QUAD + at, V::high(both));
    }
  }
}

// a * b + c, rounded once where the machine can.
inline float times_plus(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// exp(x) for x <= 0 within 2 units in the last place; below -87 it is 0.
// 2^f on [-1/2, 1/2] by its Taylor polynomial of degree 7 (remainder below 2^-27 relative).
inline float exp_of_negative(float x) {
  const float limited = x > -87.0f ? x : -87.0f;  // not-a-number too
  const float whole = times_plus(limited, 1.44269504f, 12582912.0f) - 12582912.0f;
  const float f = times_plus(whole, -1.42860677e-6f, times_plus(whole, -0.693145752f, limited));
  float p = 1.98412698e-4f;
  p = times_plus(p, f, 1.38888889e-3f);
  p = times_plus(p, f, 8.33333333e-3f);
  p = times_plus(p, f, 4.16666667e-2f);
  p = times_plus(p, f, 1.66666667e-1f);
  p = times_plus(p, f, 0.5f);
  p = times_plus(p, f, 1.0f);
  p = times_plus(p, f, 1.0f);
  const int32_t power = (static_cast<int32_t>(whole) + 127) << 23;
  float scale;
  std::memcpy(&scale, &power, 4);
  return x < -87.0f ? 0.0f : p * scale + (x - x);  // what is not a number stays none
}

// x * sigmoid(x), with the exponential of a negative number on both sides of zero.
inline float silu(float x) {
  const float e = exp_of_negative(x < 0 ? x : -x);
  return (x < 0 ? x * e : x) / (1.0f + e);
}

// Sums of a row of a panel to outputs in floats, scales and bias applied.
inline void finish_row(const Weights& w, const float* total, float scale, int64_t panel,
                       float* out) {
  const int64_t at = panel * PANEL;
  if (w.integer_sums()) {
    const int32_t* sums = reinterpret_cast<const int32_t*>(total);
    for (int n = 0; n < PANEL; ++n) {
      out[n] = static_cast<float>(sums[n]) * w.channel[at + n] * scale;
    }
  } else {
    for (int n = 0; n < PANEL; ++n) out[n] = total[n] * scale;
  }
  if (!w.bias.empty()) {
    for (int n = 0; n < PANEL; ++n) out[n] += w.bias[at + n];
  }
}

inline void write_row(const Weights& w, const float* out, int64_t panel, float* y) {
  const int width = w.columns();
  const int64_t first = panel * width, left = w.form.outputs - first;
  float* to = y + first;
  const int count = left < width ? static_cast<int>(left) : width;
  if (!w.form.gated) {
    std::memcpy(to, out, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  float gated[PANEL / 2];
  for (int n = 0; n < PANEL / 2; ++n) gated[n] = silu(out[n]) * out[n + PANEL / 2];
  std::memcpy(to, gated, static_cast<size_t>(count) * sizeof(float));
}

template <class V>
void panel(const Weights& w, const Activations& a, int64_t panel, int64_t first, int64_t last,
           float* y) {
  alignas(64) static thread_local float totals[ROW_BLOCK * PANEL];
  alignas(64) static thread_local uint8_t bytes[128 * PANEL];
  const int rows = static_cast<int>(last - first), most = V::ROWS / a.planes;
  const bool fused = w.form.weight_bits == 4 && rows <= 2 * most;
  const bool own_scales = a.groups > 1;
  std::memset(totals, 0, static_cast<size_t>(rows) * PANEL * sizeof(float));
  for (size_t c = 0; c < w.chunks.size(); ++c) {
    const Chunk& chunk = w.chunks[c];
    const uint8_t* packed = w.codes.data() + panel * w.panel_bytes + w.chunk_bytes[c];
    const size_t scales = (static_cast<size_t>(panel) * w.chunks.size() + c) * PANEL;
    if (w.form.weight_bits == 4 && !fused) unpack<V>(packed, chunk.padded, bytes);
    Work t;
    t.weights = w.form.weight_bits == 4 && !fused ? bytes : packed;
    t.row = a.padded;
    t.plane = a.rows * a.padded;
    t.sum_row = a.chunks;
    t.sum_plane = a.rows * a.chunks;
    t.padded = chunk.padded;
    t.offset = w.form.weight_bits == 4 ? 8 : V::BYTE_OFFSET;
    t.scales = w.scales.empty() ? nullptr : w.scales.data() + scales;
    t.steps = w.steps.empty() ? nullptr : w.steps.data() + scales;
    t.scale_row = a.groups;
    const int tiles = (rows + most - 1) / most;
    for (int number = 0; number < tiles; ++number) {
      const int r = rows * number / tiles, many = rows * (number + 1) / tiles - r;  // even shares
      const int64_t row = first + r;
      t.codes = a.codes + row * a.padded + chunk.start;
      t.sums = a.sums + row * a.chunks + static_cast<int64_t>(c);
      t.activation_scales =
          own_scales ? a.scales + row * a.groups + chunk.activation_group : nullptr;
      t.totals = totals + r * PANEL;
      if (fused) any_tile<V, true>(many, a.planes, 4, t);
      else any_tile<V, false>(many, a.planes, w.form.weight_bits, t);
    }
  }
  for (int r = 0; r < rows; ++r) {
    alignas(64) float out[PANEL];
    const float scale = own_scales ? 1.0f : a.scales[(first + r) * a.groups];
    finish_row(w, totals + r * PANEL, scale, panel, out);
    write_row(w, out, panel, y + (first + r) * w.form.outputs);
  }
}

constexpr float LEAST_SCALE = 5.9604645e-8f;  // 2^-24: what a row of zeros is divided by

// The largest code. The low byte of one of 16 bits is signed too, so it ends before 2^15.
inline int top_code(int bits) { return bits == 4 ? 7 : bits == 8 ? 127 : 32639; }

// The largest |x|, and not-a-number if one of them is none: as bits, magnitudes are in order.
inline float largest(const float* x, int64_t count) {
  uint32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    bits &= 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  float value;
  std::memcpy(&value, &most, 4);
  return value;
}

// Nearest integer to x / scale, ties to even, within [-top - 1, top]. Adding 1.5 * 2^23 rounds.
inline int32_t code_of(float x, float scale, float top) {
  float v = x / scale;
  v = v < top ? v : top;
  v = v > -top - 1.0f ? v : -top - 1.0f;
  const float shifted = v + 12582912.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  return bits - 0x4b400000;
}

inline int32_t codes_8(const float* x, int64_t count, float scale, float top, int8_t* codes) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t code = code_of(x[i], scale, top);
    codes[i] = static_cast<int8_t>(code);
    sum += code;
  }
  return sum;
}

inline void codes_16(const float* x, int64_t count, float scale, float top, int8_t* high,
                     int8_t* low, int32_t* high_sum, int32_t* low_sum) {
  int32_t above = 0, below = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t code = code_of(x[i], scale, top);
    const int32_t least = static_cast<int8_t>(code), most = (code - least) >> 8;
    low[i] = static_cast<int8_t>(least);
    high[i] = static_cast<int8_t>(most);
    below += least;
    above += most;
  }
  *high_sum = above;
  *low_sum = below;
}

template <class V>
void quantize(const Weights& w, const float* x, int64_t first, int64_t last,
              const Activations& a) {
  const int top = top_code(w.form.activation_bits);
  const float step = w.form.step;
  const int64_t inputs = w.form.inputs, group = w.form.activation_group;
  for (int64_t row = first; row < last; ++row) {
    const float* values = x + row * inputs;
    float* scales = const_cast<float*>(a.scales) + row * a.groups;
    for (int64_t g = 0; g < a.groups; ++g) {
      const float scale = largest(values + g * group, group) * step;
      scales[g] = scale < LEAST_SCALE ? LEAST_SCALE : scale;
    }
    int8_t* codes = const_cast<int8_t*>(a.codes) + row * a.padded;
    int32_t* sums = const_cast<int32_t*>(a.sums) + row * a.chunks;
    for (size_t c = 0; c < w.chunks.size(); ++c) {
      const Chunk& chunk = w.chunks[c];
      const float scale = scales[chunk.activation_group];
      const float* from = values + chunk.first;
      int8_t* to = codes + chunk.start;
      const size_t padding = static_cast<size_t>(chunk.padded - chunk.length);
      std::memset(to + chunk.length, 0, padding);
      if (a.planes == 1) {
        sums[c] = codes_8(from, chunk.length, scale, static_cast<float>(top), to);
      } else {
        int8_t* low = to + a.rows * a.padded;
        std::memset(low + chunk.length, 0, padding);
        codes_16(from, chunk.length, scale, static_cast<float>(top), to, low, &sums[c],
                 &sums[c + a.rows * a.chunks]);
      }
    }
  }
}

}  // namespace
