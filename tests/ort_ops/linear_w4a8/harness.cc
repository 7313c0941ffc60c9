// Every kernel that runs here against plain loops, on random forms: `harness SEED FORMS`.
//
// What products and sums of integers yield is compared exactly where all factors are integers and
// no sum reaches 2^24, so that fp32 rounds nothing; elsewhere within the roundings that there are.
#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "forms.h"
#include "linear_w4a8/kernel.h"
#include "linear_w4a8/machine_portable.h"
#include "linear_w4a8/tile.h"

namespace {

using dqx::Kernel;

constexpr double U = 0x1p-24;            // relative error of one rounding to fp32
constexpr uint32_t POISON = 0x7fc5a5a5;  // a NaN that no arithmetic makes
constexpr size_t GUARD = 32;             // floats around an array

// A value and how far from it roundings may lead.
struct Value {
  double value, error;
};

// Row times column. Each term of a chunk is rounded when its sum becomes a float, its two scales
// are multiplied, and the product is taken; then come an addition a chunk, the row's scale, and the
// bias: at most chunks + 5 roundings of a term, of what is at most the sum of the magnitudes.
Value linear(const Case& c, const Weight& w, int64_t row, int64_t output, size_t chunks) {
  const Form& form = c.form;
  double total = 0, magnitude = 0;
  for (int64_t k = 0; k < form.inputs; ++k) {
    const auto place = static_cast<size_t>(k / form.group * form.outputs + output);
    double factor = w.codes[static_cast<size_t>(k * form.outputs + output)];
    if (form.two_levels) factor *= w.steps[place];
    factor *= w.scales[form.channel ? static_cast<size_t>(output) : place];
    factor *= c.scales[static_cast<size_t>(row * c.groups() + k / form.activation_group)];
    factor *= c.codes[static_cast<size_t>(row * form.inputs + k)];
    total += factor;
    magnitude += std::fabs(factor);
  }
  const double bias = w.bias.empty() ? 0.0 : double{w.bias[static_cast<size_t>(output)]};
  total += bias;
  magnitude += std::fabs(bias);
  if (c.integers && magnitude < 0x1p24) return {total, 0};
  const double roundings = static_cast<double>(chunks + 5) * U;
  return {total, magnitude * (roundings / (1 - roundings) + 0x1p-40)};  // 2^-40: these sums here
}

double exact_silu(double x) { return x / (1 + std::exp(-x)); }

// silu of a float: 4 U of the exponential (2 units in the last place), 1 of the product, 3 of the
// denominator (4 U of at most its half, and its own), 1 of the quotient; below e^-87 it is 0.
constexpr double SILU = 9.1 * U, LEAST = 1e-35;

Value expected(const Case& c, int64_t row, int64_t output, size_t chunks) {
  const Value first = linear(c, c.weights[0], row, output, chunks);
  if (!c.form.gated) return first;
  const Value up = linear(c, c.weights[1], row, output, chunks);
  const double gate = exact_silu(first.value), slope = 1.1;  // of silu, at most
  const double off = slope * first.error;
  const double gate_error = off + SILU * (std::fabs(gate) + off) + LEAST;
  const double largest = (std::fabs(gate) + gate_error) * (std::fabs(up.value) + up.error);
  return {gate * up.value, largest - std::fabs(gate * up.value) + U * largest + LEAST};
}

// The integers of activations as kernels read them; planes and rows on top of each other.
struct Integers {
  std::vector<int8_t> codes;
  std::vector<int32_t> sums;
  std::vector<float> scales;
  dqx::Activations view;

  Integers(const dqx::Weights& w, int64_t rows) {
    view.rows = rows;
    view.padded = w.padded;
    view.chunks = static_cast<int64_t>(w.chunks.size());
    view.groups = w.form.inputs / w.form.activation_group;
    view.planes = w.form.activation_bits == 16 ? 2 : 1;
    codes.assign(static_cast<size_t>(view.planes * rows * view.padded), 0x5a);
    sums.assign(static_cast<size_t>(view.planes * rows * view.chunks), 0x5a5a5a5a);
    scales.assign(static_cast<size_t>(rows * view.groups), -1.0f);
    view.codes = codes.data();
    view.sums = sums.data();
    view.scales = scales.data();
  }

  // Codes of one row, split into bytes and padded.
  void set_row(const dqx::Weights& w, int64_t row, const int* from) {
    for (int plane = 0; plane < view.planes; ++plane) {
      const int64_t line = plane * view.rows + row;
      for (size_t i = 0; i < w.chunks.size(); ++i) {
        const dqx::Chunk& chunk = w.chunks[i];
        int8_t* to = codes.data() + line * view.padded + chunk.start;
        int32_t sum = 0;
        for (int k = 0; k < chunk.padded; ++k) {
          const int code = k < chunk.length ? from[chunk.first + k] : 0;
          const int low = view.planes == 1 ? code : ((code & 255) ^ 128) - 128;
          to[k] = static_cast<int8_t>(view.planes == 2 && plane == 0 ? (code - low) / 256 : low);
          sum += to[k];
        }
        sums[static_cast<size_t>(line * view.chunks) + i] = sum;
      }
    }
  }
};

struct Failed {};

void fail(const Kernel& kernel, const Case& c, const char* what, int64_t row, int64_t place) {
  const Form& f = c.form;
  std::printf("%s: %s, row %" PRId64 ", place %" PRId64 ": W%dA%d%s%s%s, %" PRId64 " x %" PRId64
              " x %" PRId64 ", groups %" PRId64 " and %" PRId64 "\n",
              kernel.name, what, row, place, f.weight_bits, f.activation_bits,
              f.channel ? " channel" : "", f.gated ? " gated" : "", c.integers ? " integers" : "",
              c.rows, f.inputs, f.outputs, f.group, f.activation_group);
  throw Failed{};
}

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// Outputs between guards, poisoned.
class Outputs {
 public:
  explicit Outputs(const Case& c) : case_(c), values_(size() + 2 * GUARD) { poison(); }
  float* data() { return values_.data() + GUARD; }
  float at(int64_t row, int64_t output) {
    return data()[row * case_.form.outputs + output];
  }
  void poison() {
    for (float& value : values_) std::memcpy(&value, &POISON, 4);
  }
  bool poisoned(int64_t row, int64_t output) { return bits_of(at(row, output)) == POISON; }
  bool guarded() const {
    for (size_t i = 0; i < GUARD; ++i) {
      const float before = values_[i], after = values_[GUARD + size() + i];
      if (bits_of(before) != POISON || bits_of(after) != POISON) return false;
    }
    return true;
  }

 private:
  size_t size() const { return static_cast<size_t>(case_.rows * case_.form.outputs); }
  const Case& case_;
  std::vector<float> values_;
};

// One panel for some rows: writes its outputs and nothing else.
void check_one_panel(Random& random, const Kernel& kernel, const Case& c, const dqx::Weights& w,
                     const Integers& a, Outputs& y) {
  const int64_t first = random.in(0, c.rows - 1);
  const int64_t last = random.in(first, std::min<int64_t>(c.rows, first + dqx::ROW_BLOCK));
  const int64_t panel = random.in(0, w.panels - 1);
  kernel.panel(w, a.view, panel, first, last, y.data());
  if (!y.guarded()) fail(kernel, c, "a guard is gone", first, panel);
  for (int64_t row = 0; row < c.rows; ++row) {
    for (int64_t output = 0; output < c.form.outputs; ++output) {
      const bool meant = first <= row && row < last && output / w.columns() == panel;
      if (y.poisoned(row, output) == meant) fail(kernel, c, "other outputs", row, output);
    }
  }
  y.poison();
}

// All outputs. One row in a few cases has a scale that is no number; returns how many were exact.
int64_t check_panels(Random& random, const Kernel& kernel, const Case& c, const dqx::Weights& w,
                     const std::vector<Value>& wanted) {
  Integers a(w, c.rows);
  for (int64_t row = 0; row < c.rows; ++row) {
    a.set_row(w, row, c.codes.data() + row * c.form.inputs);
  }
  a.scales = c.scales;
  a.view.scales = a.scales.data();
  const int64_t broken = random.one_in(4) ? random.in(0, c.rows - 1) : -1;
  const float none = random.one_in(2) ? std::numeric_limits<float>::quiet_NaN()
                                      : std::numeric_limits<float>::infinity();
  if (broken >= 0) {
    const int64_t group = random.in(0, a.view.groups - 1);
    a.scales[static_cast<size_t>(broken * a.view.groups + group)] = none;
  }
  Outputs y(c);
  check_one_panel(random, kernel, c, w, a, y);
  const int64_t block = random.in(std::min<int64_t>(c.rows, 13), dqx::ROW_BLOCK);
  for (int64_t panel = 0; panel < w.panels; ++panel) {
    for (int64_t row = 0; row < c.rows; row += block) {
      kernel.panel(w, a.view, panel, row, std::min(c.rows, row + block), y.data());
    }
  }
  if (!y.guarded()) fail(kernel, c, "a guard is gone", c.rows, c.form.outputs);
  int64_t exact = 0;
  for (int64_t row = 0; row < c.rows; ++row) {
    for (int64_t output = 0; output < c.form.outputs; ++output) {
      const float got = y.at(row, output);
      if (row == broken) {
        if (std::isfinite(got)) fail(kernel, c, "finite without a scale", row, output);
        continue;
      }
      const Value& value = wanted[static_cast<size_t>(row * c.form.outputs + output)];
      if (!(std::fabs(double{got} - value.value) <= value.error)) {
        std::printf("%.9g, not %.9g +- %.3g\n", double{got}, value.value, value.error);
        fail(kernel, c, "wrong", row, output);
      }
      exact += value.error == 0;
    }
  }
  return exact;
}

// Rows as they come: of all sizes, on the borders between codes, zero, and not finite.
std::vector<float> random_rows(Random& random, const Case& c) {
  const int top = top_of(c.form.activation_bits);
  std::vector<float> x(static_cast<size_t>(c.rows * c.form.inputs));
  for (int64_t row = 0; row < c.rows; ++row) {
    const int64_t kind = random.in(0, 6);
    const float size = static_cast<float>(std::exp2(random.real(-40, 40)));
    for (int64_t k = 0; k < c.form.inputs; ++k) {
      float& value = x[static_cast<size_t>(row * c.form.inputs + k)];
      if (kind == 0) value = 0;
      else if (kind == 1) value = static_cast<float>(random.in(-2 * top, 99)) * 0.5f;
      else value = size * static_cast<float>(random.real(-1, 1));
      if (kind == 2 && random.one_in(40)) value = -std::numeric_limits<float>::infinity();
      if (kind == 3 && random.one_in(40)) value = std::numeric_limits<float>::quiet_NaN();
    }
  }
  return x;
}

float scale_of_run(const Form& form, const float* x) {
  float most = 0;
  for (int64_t k = 0; k < form.activation_group; ++k) {
    if (std::isnan(x[k])) return x[k];
    most = std::max(most, std::fabs(x[k]));
  }
  return std::max(most * form.step, 0x1p-24f);
}

int code_of_value(const Form& form, float x, float scale) {
  const float top = static_cast<float>(top_of(form.activation_bits)), v = x / scale;
  return std::isnan(v) ? static_cast<int>(top)
                       : static_cast<int>(std::nearbyint(std::min(std::max(v, -top - 1), top)));
}

// Rows [first, last) become the integers of the definition, the others stay.
void check_quantize(Random& random, const Kernel& kernel, const Case& c, const dqx::Weights& w) {
  const Form& form = c.form;
  Integers got(w, c.rows), wanted(w, c.rows);
  const int64_t first = random.in(0, c.rows - 1), last = random.in(first, c.rows);
  const std::vector<float> x = random_rows(random, c);
  kernel.quantize(w, x.data(), first, last, got.view);
  std::vector<int> codes(static_cast<size_t>(form.inputs));
  for (int64_t row = first; row < last; ++row) {
    float* scales = wanted.scales.data() + row * c.groups();
    const float* values = x.data() + row * form.inputs;
    for (int64_t g = 0; g < c.groups(); ++g) {
      scales[g] = scale_of_run(form, values + g * form.activation_group);
    }
    for (int64_t k = 0; k < form.inputs; ++k) {
      const float scale = scales[k / form.activation_group];
      codes[static_cast<size_t>(k)] = code_of_value(form, values[k], scale);
    }
    wanted.set_row(w, row, codes.data());
  }
  if (got.codes != wanted.codes) fail(kernel, c, "codes of activations", first, last);
  if (got.sums != wanted.sums) fail(kernel, c, "sums of activations", first, last);
  for (size_t i = 0; i < got.scales.size(); ++i) {
    const float one = got.scales[i], other = wanted.scales[i];
    if (one != other && !(std::isnan(one) && std::isnan(other))) {
      fail(kernel, c, "scales of activations", static_cast<int64_t>(i) / c.groups(), 0);
    }
  }
}

// Every 1009th float between -100 and 100.
void check_silu(const Kernel& kernel) {
  for (uint32_t bits = 0; bits <= bits_of(100.0f); bits += 1009) {
    for (const uint32_t sign : {0u, 0x80000000u}) {
      const uint32_t all = bits | sign;
      float x;
      std::memcpy(&x, &all, 4);
      const double wanted = exact_silu(x), got = silu(x);
      if (!(std::fabs(got - wanted) <= SILU * std::fabs(wanted) + LEAST)) {
        std::printf("silu(%.9g) = %.9g, not %.9g\n", double{x}, got, wanted);
        fail(kernel, Case{}, "silu", 0, 0);
      }
    }
  }
}

void check_form(Random& random, const Case& c, std::vector<int64_t>& exact) {
  const Source first = c.weights[0].source();
  const Source second = c.form.gated ? c.weights[1].source() : Source{};
  const dqx::Weights w = dqx::pack(c.form, first, c.form.gated ? &second : nullptr);
  std::vector<Value> wanted;
  for (int64_t row = 0; row < c.rows; ++row) {
    for (int64_t n = 0; n < c.form.outputs; ++n) {
      wanted.push_back(expected(c, row, n, w.chunks.size()));
    }
  }
  const std::vector<const Kernel*> kernels = dqx::kernels_here();
  for (size_t i = 0; i < kernels.size(); ++i) {
    check_quantize(random, *kernels[i], c, w);
    exact[i] += check_panels(random, *kernels[i], c, w, wanted);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const int forms = std::atoi(arguments[2]);
  const std::vector<const Kernel*> kernels = dqx::kernels_here();
  std::vector<int64_t> exact(kernels.size());
  int number = 0;
  try {
    check_silu(*kernels.back());
    for (; number < forms; ++number) {
      Random random(std::strtoull(arguments[1], nullptr, 10) + static_cast<uint64_t>(number));
      const Case c = random_case(random);
      check_form(random, c, exact);
    }
  } catch (const Failed&) {
    std::printf("form %d after seed %s\n", number, arguments[1]);
    return 1;
  }
  for (size_t i = 0; i < kernels.size(); ++i) {
    std::printf("%s: %d forms, %" PRId64 " outputs exact\n", kernels[i]->name, forms, exact[i]);
  }
}
