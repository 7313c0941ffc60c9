// Which weights share one packed form, and how long it is kept. Prints what is wrong.
#include <cstdio>
#include <thread>

#include "library/packed.h"

namespace {

using dqx::Form;
using dqx::Source;
using dqx::SourceBytes;
using Packed = std::shared_ptr<const dqx::Weights>;

constexpr size_t INPUTS = 35, OUTPUTS = 7, GROUPS = 3;

// The tensors of a gated pair, of which one byte or float at a time is changed.
struct Tensors {
  std::vector<uint8_t> codes = std::vector<uint8_t>(INPUTS * OUTPUTS, 3);
  std::vector<float> scales = std::vector<float>(GROUPS * OUTPUTS, 0.5f);
  std::vector<float> bias = std::vector<float>(OUTPUTS, 1.0f);

  Packed packed(const Form& form, const Tensors* second) const {
    const Source one = {codes.data(), scales.data(), nullptr, bias.data()};
    const SourceBytes bytes = {codes.size(), scales.size() * 4, 0, bias.size() * 4};
    if (second == nullptr) return dqx::packed(form, one, nullptr, bytes);
    const Tensors& up = *second;
    const Source other = {up.codes.data(), up.scales.data(), nullptr, up.bias.data()};
    return dqx::packed(form, one, &other, bytes);
  }
};

bool right = true;

void expect(bool holds, const char* what) {
  if (!holds) std::printf("not so: %s\n", what);
  right = right && holds;
}

Form plain() {
  Form form;
  form.inputs = INPUTS;
  form.outputs = OUTPUTS;
  form.group = 16;
  form.activation_group = INPUTS;
  form.weight_bits = 8;
  form.step = 1.0f / 127;
  return form;
}

void check_values() {
  const Tensors tensors, copy;
  const Packed kept = tensors.packed(plain(), nullptr);
  expect(copy.packed(plain(), nullptr) == kept, "equal tensors share");
  Tensors codes, scales, bias;
  codes.codes.back() ^= 1;
  scales.scales.front() = 0.25f;
  bias.bias.back() = 2.0f;
  for (const Tensors* other : {&codes, &scales, &bias}) {
    expect(other->packed(plain(), nullptr) != kept, "other values do not share");
  }
}

void check_forms() {
  const Tensors tensors;
  const Packed kept = tensors.packed(plain(), nullptr);
  Form forms[4] = {plain(), plain(), plain(), plain()};
  forms[0].step = 1.0f / 126;
  forms[1].activation_group = 5;
  forms[2].activation_bits = 4;
  forms[3].group = 17;
  for (const Form& form : forms) {
    expect(tensors.packed(form, nullptr) != kept, "other forms do not share");
  }
  Form gated = plain();
  gated.gated = true;
  Tensors other;
  other.codes.front() = 9;
  const Packed pair = tensors.packed(gated, &other);
  expect(tensors.packed(gated, &other) == pair, "equal pairs share");
  expect(other.packed(gated, &tensors) != pair, "gate and up are told apart");
}

void check_lifetime() {
  const Tensors tensors;
  Packed kept = tensors.packed(plain(), nullptr);
  const std::weak_ptr<const dqx::Weights> watched = kept;
  kept.reset();
  expect(watched.expired(), "the last user frees");
  expect(tensors.packed(plain(), nullptr) != nullptr, "weights are packed again");
}

void check_threads() {
  const Tensors tensors;
  Packed found[8];
  std::vector<std::thread> threads;
  for (Packed& one : found) {
    threads.emplace_back([&] { one = tensors.packed(plain(), nullptr); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Packed& one : found) expect(one == found[0], "threads share");
}

}  // namespace

int main() {
  check_values();
  check_forms();
  check_lifetime();
  check_threads();
  return right ? 0 : 1;
}
