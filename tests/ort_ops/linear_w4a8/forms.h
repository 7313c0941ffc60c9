// Random forms of linears with their weights and activations, in plain numbers.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "linear_w4a8/layout.h"

namespace {

using dqx::Form;
using dqx::Source;

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
  // Codes of [low, high]: the lowest alone, the ends alone, zeros but for a few, or any.
  std::vector<int> codes(size_t count, int low, int high, bool lowest) {
    const int64_t kind = lowest ? 0 : in(0, 4);
    std::vector<int> made(count, low);
    for (int& code : made) {
      if (kind == 1) code = one_in(2) ? low : high;
      if (kind == 2) code = one_in(16) ? static_cast<int>(in(low, high)) : 0;
      if (kind > 2) code = static_cast<int>(in(low, high));
    }
    return made;
  }

 private:
  std::mt19937_64 engine_;
};

int top_of(int bits) { return bits == 4 ? 7 : bits == 8 ? 127 : 32639; }

// One weight in numbers and as the packer takes it.
struct Weight {
  std::vector<int> codes, steps;  // (inputs, outputs); (groups, outputs)
  std::vector<float> scales, bias;
  std::vector<uint8_t> stored;
  std::vector<int8_t> stored_steps;

  Source source() const {
    return {stored.data(), scales.data(), stored_steps.empty() ? nullptr : stored_steps.data(),
            bias.empty() ? nullptr : bias.data()};
  }
};

struct Case {
  Form form;
  bool integers;  // all scales and the bias
  bool lowest;    // all codes
  std::vector<Weight> weights;
  int64_t rows;
  std::vector<int> codes;     // (rows, inputs) of activations
  std::vector<float> scales;  // (rows, groups)
  int64_t groups() const { return form.inputs / form.activation_group; }
};

float scale_of(Random& random, const Case& c, double size) {
  return static_cast<float>(c.integers ? random.in(1, 2) : size * random.real(0.5, 1.5));
}

Weight random_weight(Random& random, const Case& c) {
  const Form& form = c.form;
  const auto outputs = static_cast<size_t>(form.outputs);
  const auto groups = static_cast<size_t>((form.inputs + form.group - 1) / form.group);
  const int low = form.weight_bits == 4 ? -8 : -128;
  Weight w;
  w.codes = random.codes(static_cast<size_t>(form.inputs) * outputs, low, -low - 1, c.lowest);
  w.stored.resize((w.codes.size() * static_cast<size_t>(form.weight_bits) + 7) / 8);
  for (size_t i = 0; i < w.codes.size(); ++i) {
    const int code = w.codes[i];
    if (form.weight_bits == 8) w.stored[i] = static_cast<uint8_t>(code);
    else w.stored[i / 2] = static_cast<uint8_t>(w.stored[i / 2] | (code & 15) << i % 2 * 4);
  }
  // outputs of about 1 where silu bends
  const double size = 4 / (-low * top_of(form.activation_bits) * std::sqrt(form.inputs));
  w.scales.resize(form.channel ? outputs : groups * outputs);
  for (float& scale : w.scales) scale = scale_of(random, c, size);
  if (form.two_levels) {
    w.steps = random.codes(groups * outputs, -128, 127, c.lowest);
    w.stored_steps.assign(w.steps.begin(), w.steps.end());
  }
  if (!form.gated && random.one_in(2)) {
    w.bias.resize(outputs);
    for (float& b : w.bias) {
      b = static_cast<float>(c.integers ? random.in(-9, 9) : random.real(-1, 1));
    }
  }
  return w;
}

Case random_case(Random& random) {
  Case c;
  Form& form = c.form;
  form.weight_bits = random.one_in(2) ? 4 : 8;
  form.channel = random.one_in(3);
  form.two_levels = form.channel && form.weight_bits == 4;
  form.activation_bits = static_cast<int>(random.of({4, 8, form.channel ? 8 : 16}));
  form.gated = random.one_in(3);
  c.integers = random.one_in(2);
  c.lowest = random.one_in(10);  // the largest sums of all
  // tiles of 1 … 6 rows, both ways to read nibbles, blocks of 96 rows; at most 2^21 products
  c.rows = random.one_in(4) ? random.of({95, 96, 97, 192, 193, 200}) : random.in(1, 26);
  form.outputs =
      random.one_in(2) ? random.in(1, 70) : random.of({31, 32, 33, 63, 64, 65, 127, 129});
  const int64_t most = std::max<int64_t>(8, (int64_t{1} << 21) / (c.rows * form.outputs));
  const bool deep = c.lowest || random.one_in(8);
  form.inputs = std::min(most, deep ? random.in(600, 1300) : random.in(1, 300));
  if (random.one_in(2)) form.inputs = (form.inputs + 31) / 32 * 32;
  form.group = random.of({16, 32, 64, 128, form.inputs, random.in(1, form.inputs)});
  if (form.channel && form.weight_bits == 8) form.group = form.inputs;
  form.activation_group = form.inputs;
  if (!form.channel && random.one_in(2)) {
    do form.activation_group = random.in(1, form.inputs);
    while (form.inputs % form.activation_group != 0);
  }
  form.step = static_cast<float>(random.real(0.5, 1) / top_of(form.activation_bits));
  for (int i = 0; i < (form.gated ? 2 : 1); ++i) c.weights.push_back(random_weight(random, c));
  const int top = top_of(form.activation_bits);
  c.codes = random.codes(static_cast<size_t>(c.rows * form.inputs), -top - 1, top, c.lowest);
  c.scales.resize(static_cast<size_t>(c.rows * c.groups()));
  for (float& scale : c.scales) scale = scale_of(random, c, 1);
  return c;
}

}  // namespace
