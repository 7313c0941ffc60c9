// Attention over the vector type V of one machine; in an unnamed namespace as linear_w4a8/tile.h, of
// which it uses the products: scores are a linear of the queries whose weights are the keys.
#pragma once

#include <cfloat>

#include "attention.h"
#include "linear_w4a8/tile.h"

namespace {

using dqx::AttentionCall;
using dqx::AttentionSizes;
using dqx::HeadKeys;
using dqx::MOST_CHANNELS;
using dqx::MOST_ROWS;

// The mean of the common keys of a head: shares first, as the graphs have it.
inline void mean_key(const AttentionCall& call, int64_t sequence, const float* k, float* mean) {
  const int64_t width = call.form.width;
  const bool* common = call.common + sequence * call.keys;
  float count = 0.0f;
  for (int64_t s = 0; s < call.keys; ++s) count += common[s] ? 1.0f : 0.0f;
  const float share = 1.0f / count;
  for (int64_t c = 0; c < width; ++c) mean[c] = count > 0.0f ? 0.0f : share * 0.0f;
  for (int64_t s = 0; s < call.keys; ++s) {
    if (!common[s]) continue;
    for (int64_t c = 0; c < width; ++c) mean[c] += k[s * width + c] * share;
  }
}

template <class V>
void prepare(const AttentionCall& call, const AttentionSizes& sizes, int64_t index,
             const HeadKeys& into) {
  const int64_t width = call.form.width, keys = call.keys;
  const int64_t sequence = index / call.form.kv_heads, head = index % call.form.kv_heads;
  const float* k = call.k + index * keys * width;
  const float* v = call.v + index * keys * width;
  float mean[MOST_CHANNELS], moved[MOST_CHANNELS];
  mean_key(call, sequence, k, mean);
  const auto top = static_cast<float>(call.form.k_top);
  const float step = 1.0f / top;
  std::memset(into.keys, 128, static_cast<size_t>(sizes.key_bytes));
  for (int64_t s = 0; s < sizes.panels * PANEL; ++s) into.key_scales[s] = 0.0f;
  for (int64_t s = 0; s < keys; ++s) {
    for (int64_t c = 0; c < width; ++c) moved[c] = k[s * width + c] - mean[c];
    float scale = largest(moved, width) * step;
    scale = scale < LEAST_SCALE ? LEAST_SCALE : scale;
    into.key_scales[s] = scale;
    int8_t codes[MOST_CHANNELS];
    codes_8(moved, width, scale, top, codes);
    uint8_t* column = into.keys + s / PANEL * sizes.depth * PANEL + s % PANEL * 4;
    for (int64_t c = 0; c < width; ++c) {
      column[c / 4 * QUAD + c % 4] = static_cast<uint8_t>(codes[c] + 128);
    }
  }
  const int offset = call.form.v_top > 127 ? 128 : 0;
  const auto v_top = static_cast<float>(call.form.v_top);
  const float* v_scale = call.v_scale + head * width;
  const float* v_zero = call.v_zero + head * width;
  std::memset(into.values, 0, static_cast<size_t>(sizes.value_bytes));
  for (int64_t c = 0; c < sizes.channels; ++c) into.value_sums[c] = 0;
  for (int64_t s = 0; s < keys; ++s) {
    int8_t* row = into.values + s / 4 * sizes.channels * 4 + s % 4;
    for (int64_t c = 0; c < width; ++c) {
      const float x = v[s * width + c] / v_scale[c];
      // round first: that is the order of the graphs, and a zero is a whole number
      float code = (x + 12582912.0f) - 12582912.0f + v_zero[c];
      code = code > 0.0f ? code : 0.0f;
      code = code < v_top ? code : v_top;
      const int whole = static_cast<int>(code) - offset;
      row[c * 4] = static_cast<int8_t>(whole);
      into.value_sums[c] += whole;
      if (x != x) into.key_scales[s] = x;  // what is not a number must not become one
    }
  }
}

// Products of ROWS rows of probabilities, unsigned bytes, with the values of all keys.
template <class V, int ROWS>
void values(const uint8_t* p, int64_t row, const int8_t* v, int64_t quads, int64_t channels,
            int32_t* out) {
  for (int64_t c = 0; c < channels; c += V::LANES * V::VECTORS) {
    typename V::I sums[ROWS][V::VECTORS];
    DQX_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      DQX_UNROLL
      for (int n = 0; n < V::VECTORS; ++n) sums[r][n] = V::splat(0);
    }
    const int8_t* from = v + c * 4;
    for (int64_t quad = 0; quad < quads; ++quad, from += channels * 4) {
      typename V::I lanes[V::VECTORS];
      DQX_UNROLL
      for (int n = 0; n < V::VECTORS; ++n) lanes[n] = V::load(from + n * V::LANES * 4);
      DQX_UNROLL
      for (int r = 0; r < ROWS; ++r) {
        const typename V::I four =
            V::quad(reinterpret_cast<const int8_t*>(p + r * row + quad * 4));
        DQX_UNROLL
        for (int n = 0; n < V::VECTORS; ++n) {
          sums[r][n] = V::template dot<8>(sums[r][n], four, lanes[n]);
        }
      }
    }
    DQX_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      DQX_UNROLL
      for (int n = 0; n < V::VECTORS; ++n) {
        V::store(out + r * channels + c + n * V::LANES, sums[r][n]);
      }
    }
  }
}

template <class V>
void values_of(int rows, const uint8_t* p, int64_t row, const int8_t* v, int64_t quads,
               int64_t channels, int32_t* out) {
  switch (rows) {
    case 1: return values<V, 1>(p, row, v, quads, channels, out);
    case 2: return values<V, 2>(p, row, v, quads, channels, out);
    case 3: return values<V, 3>(p, row, v, quads, channels, out);
    case 4: return values<V, 4>(p, row, v, quads, channels, out);
    case 5: return values<V, 5>(p, row, v, quads, channels, out);
    default: return values<V, 6>(p, row, v, quads, channels, out);
  }
}

// Scores of one query to codes of probabilities; their sum, and not-a-number where a score is none.
struct Softmax {
  int32_t sum;
  float alive;  // 0, or not a number
};

inline Softmax softmax(float* scores, int64_t panel_stride, const bool* visible, int64_t keys,
                       float factor, int top, uint8_t* codes) {
  float most = -FLT_MAX;
  for (int64_t first = 0, panel = 0; first < keys; first += PANEL, ++panel) {
    float* x = scores + panel * panel_stride;
    const int count = static_cast<int>(keys - first < PANEL ? keys - first : PANEL);
    for (int n = 0; n < count; ++n) {
      x[n] = visible[first + n] ? x[n] * factor : -FLT_MAX;
      most = x[n] > most ? x[n] : most;
    }
  }
  float total = 0.0f;
  for (int64_t first = 0, panel = 0; first < keys; first += PANEL, ++panel) {
    float* x = scores + panel * panel_stride;
    const int count = static_cast<int>(keys - first < PANEL ? keys - first : PANEL);
    float parts[16] = {0};  // sums side by side, so that they can be lanes
    for (int n = 0; n < count; ++n) x[n] = exp_of_negative(x[n] - most);
    for (int n = 0; n < count; ++n) parts[n % 16] += x[n];
    for (const float part : parts) total += part;
  }
  int32_t sum = 0;
  const auto scale = static_cast<float>(top);
  for (int64_t first = 0, panel = 0; first < keys; first += PANEL, ++panel) {
    const float* x = scores + panel * panel_stride;
    const int count = static_cast<int>(keys - first < PANEL ? keys - first : PANEL);
    for (int n = 0; n < count; ++n) {
      const float p = x[n] / total * scale;
      const float shifted = (p > 0.0f ? p : 0.0f) + 12582912.0f;
      int32_t bits;
      std::memcpy(&bits, &shifted, 4);
      const int32_t code = bits - 0x4b400000;
      codes[first + n] = static_cast<uint8_t>(code);
      sum += code;
    }
  }
  for (int64_t s = keys; s % 4 != 0; ++s) codes[s] = 0;
  return {sum, total - total};
}

template <class V>
void attend(const AttentionCall& call, const AttentionSizes& sizes, int64_t sequence, int64_t head,
            int64_t first, int64_t last, const HeadKeys& from, uint8_t* scratch) {
  const auto& form = call.form;
  const int rows = static_cast<int>(last - first);
  const int64_t width = form.width, row_codes = sizes.quads * 4, stride = int64_t{rows} * PANEL;
  auto* scores = reinterpret_cast<float*>(scratch);
  auto* sums_of_values = reinterpret_cast<int32_t*>(scores + sizes.panels * stride);
  auto* probabilities = reinterpret_cast<uint8_t*>(sums_of_values + MOST_ROWS * sizes.channels);

  alignas(64) int8_t codes[MOST_ROWS * MOST_CHANNELS];
  int32_t sums[MOST_ROWS];
  float factors[MOST_ROWS];
  const auto q_top = static_cast<float>(form.q_top);
  const float step = 1.0f / q_top;
  const auto shrink = static_cast<float>(1.0 / std::sqrt(static_cast<double>(width)));
  for (int r = 0; r < rows; ++r) {
    const float* q = call.q + ((sequence * call.queries + first + r) * form.heads + head) * width;
    float scale = largest(q, width) * step;
    scale = scale < LEAST_SCALE ? LEAST_SCALE : scale;
    int8_t* into = codes + r * sizes.depth;
    for (int64_t c = width; c < sizes.depth; ++c) into[c] = 0;
    sums[r] = codes_8(q, width, scale, q_top, into);
    factors[r] = scale * shrink;
  }
  Work t{};
  t.row = sizes.depth;
  t.sum_row = 1;
  t.padded = static_cast<int>(sizes.depth);
  t.offset = V::BYTE_OFFSET;
  const int tiles = (rows + V::ROWS - 1) / V::ROWS;
  for (int64_t panel = 0; panel < sizes.panels; ++panel) {
    t.weights = from.keys + panel * sizes.depth * PANEL;
    t.scales = from.key_scales + panel * PANEL;
    float* into = scores + panel * stride;
    std::memset(into, 0, static_cast<size_t>(stride) * sizeof(float));
    for (int number = 0; number < tiles; ++number) {
      const int r = rows * number / tiles, many = rows * (number + 1) / tiles - r;
      t.codes = codes + r * sizes.depth;
      t.sums = sums + r;
      t.totals = into + r * PANEL;
      any_tile<V, false>(many, 1, 8, t);
    }
  }
  Softmax found[MOST_ROWS];
  for (int r = 0; r < rows; ++r) {
    const bool* visible = call.visible + (sequence * call.queries + first + r) * call.keys;
    found[r] = softmax(scores + r * PANEL, stride, visible, call.keys, factors[r],
                       form.p_top, probabilities + r * row_codes);
  }
  const int64_t kv_head = head / (form.heads / form.kv_heads);
  const float* v_scale = call.v_scale + kv_head * width;
  const float* v_zero = call.v_zero + kv_head * width;
  const float p_step = 1.0f / static_cast<float>(form.p_top);
  const int offset = form.v_top > 127 ? 128 : 0;
  constexpr int SHIFT = 128 - V::BYTE_OFFSET;  // what `dot` has taken off the unsigned operand
  for (int number = 0; number < tiles; ++number) {
    const int r0 = rows * number / tiles, many = rows * (number + 1) / tiles - r0;
    values_of<V>(many, probabilities + r0 * row_codes, row_codes, from.values, sizes.quads,
                 sizes.channels, sums_of_values);
    for (int r = 0; r < many; ++r) {
      const int32_t* total = sums_of_values + r * sizes.channels;
      const Softmax& soft = found[r0 + r];
      const auto psum = static_cast<float>(soft.sum);
      float* y =
          call.y + ((sequence * call.queries + first + r0 + r) * form.heads + head) * width;
      for (int64_t c = 0; c < width; ++c) {
        const auto sum = static_cast<float>(total[c] + SHIFT * from.value_sums[c]);
        const float zero = static_cast<float>(offset) - v_zero[c];
        y[c] = (sum + zero * psum) * p_step * v_scale[c] + soft.alive;
      }
    }
  }
}

}  // namespace
