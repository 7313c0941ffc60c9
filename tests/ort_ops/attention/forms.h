// Random calls of attention: sizes, masks and operands, some of which are no numbers.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "attention/attention.h"

namespace {

using dqx::AttentionCall;

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  // An integer of [low, high].
  int64_t in(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  bool one_in(int64_t many) { return in(1, many) == 1; }
  int64_t of(const std::vector<int64_t>& choices) {
    return choices[static_cast<size_t>(in(0, static_cast<int64_t>(choices.size()) - 1))];
  }
  double real(double low, double high) {
    return low + (high - low) * static_cast<double>(engine_() >> 11) * 0x1p-53;
  }
  float power(double low, double high) { return static_cast<float>(std::exp2(real(low, high))); }

 private:
  std::mt19937_64 engine_;
};

// The operands of a call, each in memory of exactly its size.
struct Case {
  AttentionCall call;
  std::vector<float> q, k, v, v_scale, v_zero;
  std::unique_ptr<bool[]> visible, common;

  int64_t outputs() const {
    return call.batch * call.queries * call.form.heads * call.form.width;
  }
};

// Key heads and their sharing, tiles of 1 … 6 queries, tasks of up to 48, panels of 64 keys; widths
// and keys that are no multiples of 4; at most 2^20 products, so that plain loops stay fast.
void random_sizes(Random& random, AttentionCall& call) {
  dqx::AttentionForm& form = call.form;
  call.batch = random.in(1, 3);
  form.kv_heads = random.in(1, 3);
  form.heads = form.kv_heads * random.in(1, 3);
  form.width = random.one_in(2) ? random.of({1, 4, 15, 16, 63, 64, 65, 128}) : random.in(1, 200);
  call.keys = random.one_in(3) ? random.of({1, 4, 63, 64, 65, 128, 129}) : random.in(1, 300);
  if (random.one_in(12)) call.keys = random.in(600, 2200);  // tasks of fewer queries
  const int64_t most = (1 << 20) / (call.batch * form.heads * form.width * call.keys);
  const int64_t few = random.one_in(2) ? random.in(1, 14) : random.in(1, 130);
  call.queries = std::clamp<int64_t>(most, 1, few);
  form.q_top = static_cast<int>(random.of({7, 127}));
  form.k_top = static_cast<int>(random.of({7, 127}));
  form.v_top = static_cast<int>(random.of({7, 15, 127, 255}));
  form.p_top = static_cast<int>(random.of({7, 15, 127, 255}));
}

// Who sees whom: everybody, most, or hardly anybody; unseen keys, queries that see nothing.
// `common` need not be what all queries see: the operator takes it as it comes.
void random_masks(Random& random, Case& c) {
  const AttentionCall& call = c.call;
  const int64_t rows = call.batch * call.queries;
  c.visible.reset(new bool[static_cast<size_t>(rows * call.keys)]);
  c.common.reset(new bool[static_cast<size_t>(call.batch * call.keys)]);
  const double share = random.one_in(3) ? 2 : random.one_in(2) ? 0.8 : 0.05;
  const int64_t hidden_from = random.one_in(3) ? random.in(0, call.keys) : call.keys;
  const int64_t blind = random.one_in(2) ? random.in(0, rows - 1) : -1;
  for (int64_t i = 0; i < rows * call.keys; ++i) {
    const bool shown = i % call.keys < hidden_from && i / call.keys != blind;
    c.visible[static_cast<size_t>(i)] = shown && random.real(0, 1) < share;
  }
  const bool any = !random.one_in(20);  // without a common key there is no mean
  for (int64_t i = 0; i < call.batch * call.keys; ++i) {
    const int64_t key = i % call.keys;
    const bool shown = key < hidden_from && random.real(0, 1) < share;
    c.common[static_cast<size_t>(i)] = any && (key == 0 || shown);
  }
}

// Between -1 and 1 in steps of half a code.
float halves(Random& random, int top) {
  return static_cast<float>(random.in(-2 * top, 2 * top)) / static_cast<float>(2 * top);
}

// Vectors of all sizes, zero, and, as far as the mean key leaves them there, between two codes.
std::vector<float> random_vectors(Random& random, int64_t count, int64_t width, float size,
                                  int top) {
  std::vector<float> x(static_cast<size_t>(count * width));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t kind = random.in(0, 7);
    const float own = kind == 2 ? size * random.power(-8, 0) : size;
    for (int64_t n = 0; n < width; ++n) {
      float& value = x[static_cast<size_t>(i * width + n)];
      if (kind == 0) value = 0;
      else if (kind == 1) value = size * halves(random, top);
      else value = own * static_cast<float>(random.real(-1, 1));
    }
  }
  return x;
}

// One number of one operand becomes none: queries, keys or values.
void break_one(Random& random, Case& c) {
  constexpr float INF = std::numeric_limits<float>::infinity();
  constexpr float NONE = std::numeric_limits<float>::quiet_NaN();
  std::vector<float>& x = random.one_in(3) ? c.q : random.one_in(2) ? c.k : c.v;
  const int64_t kind = random.in(0, 2);
  x[static_cast<size_t>(random.in(0, static_cast<int64_t>(x.size()) - 1))] =
      kind == 0 ? NONE : kind == 1 ? INF : -INF;
}

Case random_case(Random& random) {
  Case c;
  AttentionCall& call = c.call;
  random_sizes(random, call);
  random_masks(random, c);
  const auto& form = call.form;
  const float k_size = random.power(-20, 20), score_size = random.power(-2, 5);
  const int64_t vectors = call.batch * form.kv_heads * call.keys;
  c.q = random_vectors(random, call.batch * call.queries * form.heads, form.width,
                       score_size / k_size, form.q_top);
  c.k = random_vectors(random, vectors, form.width, k_size, form.k_top);
  const bool zero_mean = random.one_in(3);  // ties stay ties
  for (int64_t i = 0; zero_mean && i < vectors; ++i) {
    const int64_t sequence = i / (call.keys * form.kv_heads);
    const bool common = c.common[static_cast<size_t>(sequence * call.keys + i % call.keys)];
    if (common) std::fill_n(c.k.begin() + i * form.width, form.width, 0.0f);
  }
  c.v = random_vectors(random, vectors, form.width, 1.0f, form.v_top);
  for (int64_t i = 0; i < form.kv_heads * form.width; ++i) {
    // about as wide as the values: some are clipped at both ends
    const float wide = random.one_in(4) ? 2.0f : random.power(-1, 3);
    c.v_scale.push_back(wide / static_cast<float>(form.v_top));
    c.v_zero.push_back(static_cast<float>(random.in(0, form.v_top)));
  }
  if (random.one_in(3)) break_one(random, c);
  call.q = c.q.data();
  call.k = c.k.data();
  call.v = c.v.data();
  call.visible = c.visible.get();
  call.common = c.common.get();
  call.v_scale = c.v_scale.data();
  call.v_zero = c.v_zero.data();
  return c;
}

}  // namespace
