// Every kernel of attention that runs here against plain loops, on random calls: `harness SEED
// FORMS`.
//
// Integers of keys and values are compared as they lie in memory, outputs within the bounds of
// expected.h.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "expected.h"
#include "forms.h"
#include "linear_w4a8/kernel.h"

// What linear_w4a8/choose.cc tells the names of; linears themselves are no part of this program.
namespace dqx {
#if defined(__x86_64__)
extern const Kernel AVX512, AVXVNNI, AVX2;
const Kernel AVX512 = {"avx512", nullptr, nullptr}, AVXVNNI = {"avxvnni", nullptr, nullptr};
const Kernel AVX2 = {"avx2", nullptr, nullptr};
#elif defined(__aarch64__)
extern const Kernel I8MM, NEON;
const Kernel I8MM = {"i8mm", nullptr, nullptr}, NEON = {"neon", nullptr, nullptr};
#endif
extern const Kernel PORTABLE;
const Kernel PORTABLE = {"portable", nullptr, nullptr};
}  // namespace dqx

namespace {

using dqx::AttentionKernel;
using dqx::AttentionSizes;
using dqx::HeadKeys;

constexpr uint32_t POISON = 0x7fc5a5a5;  // a NaN that no arithmetic makes
constexpr uint8_t STALE = 0xa5;          // what lay in memory before
constexpr size_t GUARD = 256;            // bytes on both sides of an array

struct Failed {};

void fail(const AttentionKernel& kernel, const Case& c, const char* what, int64_t one,
          int64_t other) {
  const AttentionCall& call = c.call;
  std::printf("%s: %s, at %" PRId64 ", %" PRId64 ": %" PRId64 " x %" PRId64 " queries x %" PRId64
              " keys, heads %" PRId64 " / %" PRId64 " x %" PRId64 ", tops %d %d %d %d\n",
              kernel.name, what, one, other, call.batch, call.queries, call.keys, call.form.heads,
              call.form.kv_heads, call.form.width, call.form.q_top, call.form.k_top,
              call.form.v_top, call.form.p_top);
  throw Failed{};
}

// Bytes between guards.
class Bytes {
 public:
  explicit Bytes(int64_t size)
      : size_(static_cast<size_t>(size)), all_(size_ + 2 * GUARD + 64, STALE) {
    const auto at = reinterpret_cast<uintptr_t>(all_.data() + GUARD);
    first_ = GUARD + (64 - at % 64) % 64;
  }
  uint8_t* data() { return all_.data() + first_; }
  // Whether nothing but [low, high) has changed.
  bool stale_outside(int64_t low, int64_t high) const {
    for (size_t i = 0; i < all_.size(); ++i) {
      const int64_t place = static_cast<int64_t>(i) - static_cast<int64_t>(first_);
      if (all_[i] != STALE && (place < low || place >= high)) return false;
    }
    return true;
  }
  bool guarded() const { return stale_outside(0, static_cast<int64_t>(size_)); }
  void wipe() { std::fill(all_.begin(), all_.end(), STALE); }

 private:
  size_t size_, first_;
  std::vector<uint8_t> all_;
};

void check_keys(const AttentionKernel& kernel, const Case& c, const AttentionSizes& sizes,
                const Head& head, const HeadKeys& got) {
  const auto width = static_cast<size_t>(c.call.form.width);
  for (int64_t s = 0; s < sizes.panels * 64; ++s) {
    const bool there = s < c.call.keys;
    const Vector* key = there ? &head.keys[static_cast<size_t>(s)] : nullptr;
    const float wanted = there ? key->scale : 0.0f, scale = got.key_scales[s];
    const bool number = std::isfinite(wanted) && (!there || head.whole[static_cast<size_t>(s)]);
    if (number ? scale != wanted : !std::isnan(scale)) fail(kernel, c, "scale of a key", s, 0);
    if (there && !std::isfinite(wanted)) continue;
    for (int64_t n = 0; n < sizes.depth; ++n) {
      const bool real = there && static_cast<size_t>(n) < width;
      const int code = real ? key->codes[static_cast<size_t>(n)] : 0;
      const int64_t place = (s / 64 * sizes.depth / 4 + n / 4) * 256 + s % 64 * 4 + n % 4;
      if (got.keys[place] != code + 128) fail(kernel, c, "code of a key", s, n);
    }
  }
}

void check_values(const AttentionKernel& kernel, const Case& c, const AttentionSizes& sizes,
                  const Head& head, const HeadKeys& got) {
  const int offset = c.call.form.v_top > 127 ? 128 : 0;
  for (int64_t n = 0; n < sizes.channels; ++n) {
    int32_t sum = 0;
    for (int64_t s = 0; s < sizes.quads * 4; ++s) {
      const bool real = s < c.call.keys && n < c.call.form.width;
      const int code =
          real ? head.values[static_cast<size_t>(s)][static_cast<size_t>(n)] - offset : 0;
      const int64_t place = (s / 4 * sizes.channels + n) * 4 + s % 4;
      if (got.values[place] != code) fail(kernel, c, "code of a value", s, n);
      sum += code;
    }
    if (got.value_sums[n] != sum) fail(kernel, c, "sum of values", n, 0);
  }
}

void prepare_all(Random& random, const AttentionKernel& kernel, const Case& c,
                 const AttentionSizes& sizes, const std::vector<Head>& heads, Bytes& workspace) {
  const auto count = static_cast<int64_t>(heads.size());
  const int64_t one = random.in(0, count - 1);
  kernel.prepare(c.call, sizes, one, head_keys(sizes, workspace.data(), one));
  if (!workspace.stale_outside(one * sizes.bytes, (one + 1) * sizes.bytes)) {
    fail(kernel, c, "keys of another head", one, 0);
  }
  for (int64_t i = 0; i < count; ++i) {
    const HeadKeys into = head_keys(sizes, workspace.data(), i);
    kernel.prepare(c.call, sizes, i, into);
    check_keys(kernel, c, sizes, heads[static_cast<size_t>(i)], into);
    check_values(kernel, c, sizes, heads[static_cast<size_t>(i)], into);
  }
  if (!workspace.guarded()) fail(kernel, c, "a guard of the workspace is gone", 0, 0);
}

// Outputs between guards, poisoned; and the tasks that write them.
class Attended {
 public:
  Attended(const AttentionKernel& kernel, const Case& c, const AttentionSizes& sizes, Bytes& keys)
      : kernel_(kernel), case_(c), call_(c.call), sizes_(sizes), keys_(keys),
        scratch_(sizes.scratch), y_(static_cast<size_t>(c.outputs()) + 2 * GUARD) {
    call_.y = y_.data() + GUARD;
    poison();
  }
  float at(int64_t i) const { return call_.y[i]; }
  void poison() {
    for (float& value : y_) std::memcpy(&value, &POISON, 4);
  }
  bool poisoned(int64_t i) const {
    uint32_t bits;
    std::memcpy(&bits, call_.y + i, 4);
    return bits == POISON;
  }
  void attend(int64_t sequence, int64_t head, int64_t first, int64_t last) {
    const auto& form = call_.form;
    const int64_t index = sequence * form.kv_heads + head / (form.heads / form.kv_heads);
    scratch_.wipe();
    kernel_.attend(call_, sizes_, sequence, head, first, last,
                   head_keys(sizes_, keys_.data(), index), scratch_.data());
    const bool guarded = scratch_.guarded() && keys_.guarded();
    if (!guarded) fail(kernel_, case_, "a guard is gone", first, last);
    for (size_t i = 0; i < GUARD; ++i) {
      const int64_t before = static_cast<int64_t>(i - GUARD);
      if (!poisoned(before) || !poisoned(case_.outputs() + static_cast<int64_t>(i))) {
        fail(kernel_, case_, "a guard of the outputs is gone", first, last);
      }
    }
  }

 private:
  const AttentionKernel& kernel_;
  const Case& case_;
  AttentionCall call_;
  const AttentionSizes& sizes_;
  Bytes& keys_;
  Bytes scratch_;
  std::vector<float> y_;
};

// One task: writes its outputs and nothing else.
void check_one_task(Random& random, const AttentionKernel& kernel, const Case& c,
                    const AttentionSizes& sizes, Attended& y) {
  const auto& form = c.call.form;
  const int64_t sequence = random.in(0, c.call.batch - 1), head = random.in(0, form.heads - 1);
  const int64_t first = random.in(0, c.call.queries - 1);
  const int64_t last = random.in(first + 1, std::min(c.call.queries, first + sizes.rows));
  y.attend(sequence, head, first, last);
  for (int64_t i = 0; i < c.outputs(); ++i) {
    const int64_t row = i / (form.heads * form.width), query = row % c.call.queries;
    const bool meant = row / c.call.queries == sequence && i / form.width % form.heads == head &&
                       first <= query && query < last;
    if (y.poisoned(i) == meant) fail(kernel, c, "other outputs", row, i);
  }
  y.poison();
}

// All outputs; how many had one value alone.
int64_t check_outputs(Random& random, const AttentionKernel& kernel, const Case& c,
                      const AttentionSizes& sizes, Bytes& keys, const std::vector<Value>& wanted) {
  Attended y(kernel, c, sizes, keys);
  check_one_task(random, kernel, c, sizes, y);
  const int64_t rows = random.one_in(2) ? sizes.rows : random.in(1, sizes.rows);
  for (int64_t i = 0; i < c.call.batch * c.call.form.heads; ++i) {
    for (int64_t first = 0; first < c.call.queries; first += rows) {
      y.attend(i / c.call.form.heads, i % c.call.form.heads, first,
               std::min(c.call.queries, first + rows));
    }
  }
  int64_t certain = 0;
  for (int64_t i = 0; i < c.outputs(); ++i) {
    const double got = y.at(i);
    const Value& value = wanted[static_cast<size_t>(i)];
    const bool right =
        value.none ? std::isnan(got) : std::fabs(got - value.value) <= value.error;
    if (!right || y.poisoned(i)) {
      std::printf("%.9g, not %.9g +- %.3g%s\n", got, value.value, value.error,
                  value.none ? ": it is no number" : "");
      fail(kernel, c, "wrong", i / c.call.form.width, i % c.call.form.width);
    }
    certain += value.certain;
  }
  return certain;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const int forms = std::atoi(arguments[2]);
  const std::vector<const dqx::Kernel*> kernels = dqx::kernels_here();
  std::vector<int64_t> certain(kernels.size());
  int number = 0;
  try {
    for (; number < forms; ++number) {
      Random random(std::strtoull(arguments[1], nullptr, 10) + static_cast<uint64_t>(number));
      const Case c = random_case(random);
      const AttentionSizes sizes(c.call);
      std::vector<Head> heads;
      for (int64_t i = 0; i < c.call.batch * c.call.form.kv_heads; ++i) {
        heads.push_back(expected_head(c, i));
      }
      const std::vector<Value> wanted = expected(c, heads);
      for (size_t i = 0; i < kernels.size(); ++i) {
        const AttentionKernel& kernel = dqx::attention_kernel(kernels[i]->name);
        const bool named = std::strcmp(kernel.name, kernels[i]->name) == 0;
        if (!named) fail(kernel, c, "another kernel", 0, 0);
        Bytes workspace(static_cast<int64_t>(heads.size()) * sizes.bytes);
        prepare_all(random, kernel, c, sizes, heads, workspace);
        certain[i] += check_outputs(random, kernel, c, sizes, workspace, wanted);
      }
    }
  } catch (const Failed&) {
    std::printf("form %d after seed %s\n", number, arguments[1]);
    return 1;
  }
  for (size_t i = 0; i < kernels.size(); ++i) {
    std::printf("%s: %d forms, %" PRId64 " outputs certain\n", kernels[i]->name, forms, certain[i]);
  }
}
