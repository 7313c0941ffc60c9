// What attention computes, in plain loops: the integers of keys and values, and outputs within the
// roundings that there are. An interval for every probability tells which codes it may get; where
// that is one alone, as nearly everywhere, four roundings are all that is left.
#pragma once

#include "forms.h"

namespace {

constexpr double U = 0x1p-24;  // relative error of one rounding to fp32
constexpr float LEAST_SCALE = 0x1p-24f;

// A vector in codes. Without a finite scale these mean nothing.
struct Vector {
  std::vector<int> codes;
  float scale;
};

// Found in fp32 step by step: there is one right result.
Vector round_vector(const std::vector<float>& x, int top) {
  float largest = 0;
  for (const float each : x) largest = std::fmax(largest, std::fabs(each));
  for (const float each : x) largest = std::isnan(each) ? each : largest;
  const float step = 1.0f / static_cast<float>(top), product = largest * step;
  Vector found{std::vector<int>(x.size()), product < LEAST_SCALE ? LEAST_SCALE : product};
  if (!std::isfinite(found.scale)) return found;
  for (size_t i = 0; i < x.size(); ++i) {
    const int code = static_cast<int>(std::nearbyint(x[i] / found.scale));
    found.codes[i] = std::clamp(code, -top - 1, top);
  }
  return found;
}

// Keys and values of one head and sequence.
struct Head {
  std::vector<Vector> keys;              // those of which the score is a number have a finite scale
  std::vector<bool> whole;               // whether the value has numbers alone
  std::vector<std::vector<int>> values;  // codes between 0 and v_top; of what is no number 0
};

Head expected_head(const Case& c, int64_t index) {
  const AttentionCall& call = c.call;
  const int64_t width = call.form.width;
  const bool* common = call.common + index / call.form.kv_heads * call.keys;
  const auto count = std::max<int64_t>(std::count(common, common + call.keys, true), 1);
  const float share = 1.0f / static_cast<float>(count);
  std::vector<float> mean(static_cast<size_t>(width), 0.0f);  // it stays so without common keys
  const auto at = [&](int64_t s, int64_t n) {
    return static_cast<size_t>((index * call.keys + s) * width + n);
  };
  for (int64_t s = 0; s < call.keys; ++s) {
    for (int64_t n = 0; common[s] && n < width; ++n) {
      mean[static_cast<size_t>(n)] += c.k[at(s, n)] * share;
    }
  }
  Head head;
  const int64_t first = index % call.form.kv_heads * width;
  for (int64_t s = 0; s < call.keys; ++s) {
    std::vector<float> moved;
    std::vector<int> codes;
    bool whole = true;
    for (int64_t n = 0; n < width; ++n) {
      const auto channel = static_cast<size_t>(first + n);
      moved.push_back(c.k[at(s, n)] - mean[static_cast<size_t>(n)]);
      const float value = c.v[at(s, n)];
      const float code = std::nearbyint(value / c.v_scale[channel]) + c.v_zero[channel];
      const auto top = static_cast<float>(call.form.v_top);
      codes.push_back(std::isnan(value) ? 0 : static_cast<int>(std::clamp(code, 0.0f, top)));
      whole = whole && !std::isnan(value);
    }
    head.keys.push_back(round_vector(moved, call.form.k_top));
    head.values.push_back(codes);
    head.whole.push_back(whole);
  }
  return head;
}

// An output and how far from it roundings may lead; none: it has to be not a number.
struct Value {
  double value, error;
  bool none, certain;  // certain: no probability lies between two codes
};

// Codes that the probability of one key may get.
struct Codes {
  double low, high;
};

// Scores: the scales of key and query, 1 / sqrt(K) and their product are four roundings.
// exp(): of a difference, itself rounded, within 2 units in the last place, and 0 below e^-87; at
// most 1. Then comes the product with p_top.
std::vector<Codes> probabilities(const Case& c, const Head& head, const Vector& query,
                                 const bool* visible) {
  const auto keys = static_cast<size_t>(c.call.keys);
  std::vector<double> scores(keys), off(keys);
  const bool blind = std::count(visible, visible + keys, true) == 0;
  double greatest = -INFINITY, most_off = 0;
  for (size_t s = 0; s < keys && !blind; ++s) {
    if (!visible[s]) continue;
    double sum = 0;
    for (size_t n = 0; n < query.codes.size(); ++n) sum += query.codes[n] * head.keys[s].codes[n];
    scores[s] = sum * head.keys[s].scale * query.scale / std::sqrt(c.call.form.width);
    off[s] = 4.01 * U * std::fabs(scores[s]);
    greatest = std::max(greatest, scores[s]);
    most_off = std::max(most_off, off[s]);
  }
  std::vector<Codes> found(keys);
  for (size_t s = 0; s < keys; ++s) {
    if (blind) {
      found[s] = {1, 1};  // equal scores, of which exp(0) is exact
    } else if (visible[s]) {
      const double x = scores[s] - greatest, error = (off[s] + most_off) * 1.01 - 1.01 * U * x;
      found[s] = {std::exp(x - error) * (1 - 4.1 * U) - 0x1p-125,
                  std::exp(std::min(x + error, 0.0)) * (1 + 4.1 * U) + 0x1p-125};
    }
  }
  const double top = c.call.form.p_top;
  for (Codes& p : found) {
    p.low = std::nearbyint(std::max(p.low, 0.0) * top * (1 - 1.1 * U));
    p.high = std::nearbyint(std::min(p.high * (1 + 1.1 * U), 1.0) * top);
  }
  return found;
}

// Outputs of one query and head, (width) from `into` on. Sums of codes are exact; the numerator, one
// over the sum of codes, and two products are four roundings, five where that sum has many bits.
void expect_query(const Case& c, const Head& head, int64_t row, int64_t head_number, Value* into) {
  const auto& form = c.call.form;
  const auto width = static_cast<size_t>(form.width);
  const auto first = c.q.begin() + (row * form.heads + head_number) * form.width;
  const Vector query = round_vector({first, first + form.width}, form.q_top);
  const bool* visible = c.call.visible + row * c.call.keys;
  bool none = false;
  for (size_t s = 0; s < head.keys.size(); ++s) {
    const bool number = std::isfinite(query.scale) && std::isfinite(head.keys[s].scale);
    none = none || (visible[s] && !(number && head.whole[s]));
  }
  if (none) {
    std::fill_n(into, width, Value{0, 0, true, false});
    return;
  }
  const std::vector<Codes> p = probabilities(c, head, query, visible);
  const auto channel = static_cast<size_t>(head_number / (form.heads / form.kv_heads)) * width;
  double sum = 0, sum_off = 0;
  for (const Codes& each : p) {
    sum += (each.low + each.high) / 2;
    sum_off += (each.high - each.low) / 2;
  }
  for (size_t n = 0; n < width; ++n) {
    Value y{0, 0, false, true};
    for (size_t s = 0; s < p.size(); ++s) {
      const double value = head.values[s][n] - double{c.v_zero[channel + n]};
      y.value += (p[s].low + p[s].high) / 2 * value;
      y.error += (p[s].high - p[s].low) / 2 * std::fabs(value);
      y.certain = y.certain && p[s].low == p[s].high;
    }
    const double step = c.v_scale[channel + n];
    y.value *= step / sum;
    y.error = (y.error * step + sum_off * std::fabs(y.value)) / (sum - sum_off);
    y.error = y.error * (1 + 6 * U) + 5.01 * U * std::fabs(y.value);
    into[n] = y;
  }
}

std::vector<Value> expected(const Case& c, const std::vector<Head>& heads) {
  const auto& form = c.call.form;
  std::vector<Value> y(static_cast<size_t>(c.outputs()));
  for (int64_t i = 0; i < c.outputs() / form.width; ++i) {
    const int64_t row = i / form.heads, number = i % form.heads;
    const int64_t kv_head = number / (form.heads / form.kv_heads);
    const Head& head =
        heads[static_cast<size_t>(row / c.call.queries * form.kv_heads + kv_head)];
    expect_query(c, head, row, number, y.data() + i * form.width);
  }
  return y;
}

}  // namespace
