// Attention over the vector type V of one machine; in an unnamed namespace as linear_w4a8/tile.h, of
// which it uses the products: scores are a linear of the queries whose weights are the keys.
#pragma once

#include <algorithm>
#include <cfloat>

#include "attention.h"
#include "linear_w4a8/tile.h"

namespace {

using dqx::AttentionCall;
using dqx::AttentionSizes;
using dqx::HeadKeys;
using dqx::MOST_CHANNELS;
using dqx::MOST_ROWS;

// The mean of the common keys of a head: shares first, as the graphs have it. Zeros: there are none.
inline void mean_key(const AttentionCall& call, int64_t sequence, const float* k, float* mean) {
  const int64_t width = call.form.width;
  const bool* common = call.common + sequence * call.keys;
  float count = 0.0f;
  for (int64_t s = 0; s < call.keys; ++s) count += common[s] ? 1.0f : 0.0f;
  const float share = 1.0f / std::max(count, 1.0f);
  for (int64_t c = 0; c < width; ++c) mean[c] = 0.0f;
  for (int64_t s = 0; s < call.keys; ++s) {
    if (!common[s]) continue;
    for (int64_t c = 0; c < width; ++c) mean[c] += k[s * width + c] * share;
  }
}

// Codes of a vector of values less the offset, also added to `sums`; whether all are numbers.
inline bool value_codes(const float* v, int64_t width, const float* scale, const float* zero,
                        float top, int offset, int8_t* codes, int32_t* sums) {
  float alive = 0.0f;
  for (int64_t c = 0; c < width; ++c) {
    const float x = v[c] / scale[c];
    // round first: that is the order of the graphs, and a zero is a whole number
    float code = (x + 12582912.0f) - 12582912.0f + zero[c];
    code = code > 0.0f ? code : 0.0f;
    code = code < top ? code : top;
    const int32_t whole = static_cast<int32_t>(code) - offset;
    codes[c] = static_cast<int8_t>(whole);
    sums[c] += whole;
  }
  for (int64_t c = 0; c < width; ++c) alive = v[c] == v[c] ? alive : 1.0f;
  return alive == 0.0f;
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
    into.key_scales[s] = scale + (scale - scale);  // infinite ones too: -inf would hide the key
    int8_t codes[MOST_CHANNELS] = {0};
    codes_8(moved, width, scale, top, codes);
    uint8_t offset_codes[MOST_CHANNELS];
    for (int64_t c = 0; c < sizes.depth; ++c) offset_codes[c] = static_cast<uint8_t>(codes[c] ^ -128);
    uint8_t* column = into.keys + s / PANEL * sizes.depth * PANEL + s % PANEL * 4;
    for (int64_t c = 0; c < sizes.depth; c += 4) std::memcpy(column + c * PANEL, offset_codes + c, 4);
  }
  const int offset = call.form.v_top > 127 ? 128 : 0;
  const auto v_top = static_cast<float>(call.form.v_top);
  const float* v_scale = call.v_scale + head * width;
  const float* v_zero = call.v_zero + head * width;
  std::memset(into.values, 0, static_cast<size_t>(sizes.value_bytes));
  for (int64_t c = 0; c < sizes.channels; ++c) into.value_sums[c] = 0;
  for (int64_t s = 0; s < keys; s += 4) {
    int8_t codes[4][MOST_CHANNELS];
    for (int64_t i = 0; i < 4; ++i) {
      if (s + i < keys) {
        const bool whole = value_codes(v + (s + i) * width, width, v_scale, v_zero, v_top, offset,
                                       codes[i], into.value_sums);
        if (!whole) into.key_scales[s + i] = NAN;  // what is not a number must not become one
      } else {
        std::memset(codes[i], 0, static_cast<size_t>(width));
      }
    }
    int8_t* to = into.values + s * sizes.channels;
    for (int64_t c = 0; c < width; ++c) {
      to[c * 4] = codes[0][c];
      to[c * 4 + 1] = codes[1][c];
      to[c * 4 + 2] = codes[2][c];
      to[c * 4 + 3] = codes[3][c];
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

// Scores of one query to codes of exponentials, relative to the largest; their sum, and
// not-a-number where a score is none.
struct Softmax {
  int32_t sum;
  float alive;  // 0, or not a number
};

// Loops run over sixteen lanes side by side, which is what lets a compiler make vectors of maxima and
// sums without leave to reorder them.
inline Softmax softmax(float* scores, int64_t panel_stride, const bool* visible, int64_t keys,
                       float factor, int top, uint8_t* codes) {
  constexpr int SIDE = 16;
  constexpr int32_t LOWEST = static_cast<int32_t>(0xff7fffffu);  // the bits of -FLT_MAX
  const int64_t panels = (keys + PANEL - 1) / PANEL;
  float most[SIDE], alive[SIDE] = {0.0f};
  for (int lane = 0; lane < SIDE; ++lane) most[lane] = -FLT_MAX;
  for (int64_t panel = 0; panel < panels; ++panel) {
    float* x = scores + panel * panel_stride;
    const int64_t first = panel * PANEL, left = keys - first;
    const int count = static_cast<int>(left < PANEL ? left : PANEL);
    uint8_t shown[PANEL] = {0};
    std::memcpy(shown, visible + first, static_cast<size_t>(count));
    for (int n = 0; n < PANEL; ++n) {
      const int32_t keep = -static_cast<int32_t>(shown[n]);  // all bits or none
      const float score = x[n] * factor;
      int32_t bits;
      std::memcpy(&bits, &score, 4);
      bits = (bits & keep) | (LOWEST & ~keep);
      std::memcpy(&x[n], &bits, 4);
    }
    for (int n = count; n < PANEL; ++n) x[n] = -INFINITY;  // no key: less than a hidden one
    for (int n = 0; n < PANEL; n += SIDE) {
      for (int lane = 0; lane < SIDE; ++lane) {
        most[lane] = x[n + lane] > most[lane] ? x[n + lane] : most[lane];
      }
    }
  }
  float greatest = -FLT_MAX, any = 0.0f;
  for (const float each : most) greatest = each > greatest ? each : greatest;
  const auto scale = static_cast<float>(top);
  int32_t sums[SIDE] = {0};
  for (int64_t panel = 0; panel < panels; ++panel) {
    const float* x = scores + panel * panel_stride;
    uint8_t* to = codes + panel * PANEL;
    for (int n = 0; n < PANEL; n += SIDE) {
      for (int lane = 0; lane < SIDE; ++lane) {
        const float e = exp_of_negative(x[n + lane] - greatest);
        alive[lane] += e - e;
        const float shifted = e * scale + 12582912.0f;
        int32_t bits;
        std::memcpy(&bits, &shifted, 4);
        to[n + lane] = static_cast<uint8_t>(bits);
        sums[lane] += bits & 0xff;
      }
    }
  }
  int32_t sum = 0;
  for (const int32_t each : sums) sum += each;
  for (const float each : alive) any += each;
  return {sum, any};
}

template <class V>
void attend(const AttentionCall& call, const AttentionSizes& sizes, int64_t sequence, int64_t head,
            int64_t first, int64_t last, const HeadKeys& from, uint8_t* scratch) {
  const auto& form = call.form;
  const int rows = static_cast<int>(last - first);
  const int64_t width = form.width, row_codes = sizes.panels * PANEL, stride = int64_t{rows} * PANEL;
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
    factors[r] = scale * shrink + (scale - scale);  // likewise
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
  const int offset = form.v_top > 127 ? 128 : 0;
  constexpr int SHIFT = 128 - V::BYTE_OFFSET;  // what `dot` has taken off the unsigned operand
  for (int number = 0; number < tiles; ++number) {
    const int r0 = rows * number / tiles, many = rows * (number + 1) / tiles - r0;
    values_of<V>(many, probabilities + r0 * row_codes, row_codes, from.values, sizes.quads,
                 sizes.channels, sums_of_values);
    for (int r = 0; r < many; ++r) {
      const int32_t* total = sums_of_values + r * sizes.channels;
      const Softmax& soft = found[r0 + r];
      const float share = 1.0f / static_cast<float>(soft.sum);
      float* y =
          call.y + ((sequence * call.queries + first + r0 + r) * form.heads + head) * width;
      for (int64_t c = 0; c < width; ++c) {
        const int32_t moved = offset - static_cast<int32_t>(v_zero[c]);
        const int32_t sum = total[c] + SHIFT * from.value_sums[c] + moved * soft.sum;
        y[c] = static_cast<float>(sum) * share * v_scale[c] + soft.alive;
      }
    }
  }
}

}  // namespace
