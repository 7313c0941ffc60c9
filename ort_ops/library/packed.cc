#include "packed.h"

#include <array>
#include <cstring>
#include <map>
#include <mutex>

namespace dqx {
namespace {

using Key = std::array<uint64_t, 2>;

// Two multiplicative hashes over eight bytes at a time; collisions are as likely as memory errors.
void mix(Key& key, const void* data, size_t bytes) {
  const char* from = static_cast<const char*>(data);
  for (size_t at = 0; at < bytes; at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, from + at, bytes - at < 8 ? bytes - at : 8);
    key[0] = (key[0] ^ word) * 0x9e3779b97f4a7c15ull;
    key[0] ^= key[0] >> 29;
    key[1] = (key[1] + word) * 0xc2b2ae3d27d4eb4full;
    key[1] ^= key[1] >> 31;
  }
  key[0] += bytes;
}

void mix(Key& key, const Source& source, const SourceBytes& bytes) {
  mix(key, source.codes, bytes.codes);
  mix(key, source.scales, bytes.scales);
  mix(key, source.steps, bytes.steps);
  mix(key, source.bias, bytes.bias);
}

Key key_of(const Form& form, const Source& first, const Source* second,
           const SourceBytes& bytes) {
  const int64_t facts[] = {form.inputs, form.outputs, form.group, form.activation_group,
                           form.weight_bits, form.activation_bits, form.channel, form.gated};
  Key key{1, 2};
  mix(key, facts, sizeof facts);
  mix(key, &form.step, sizeof form.step);
  mix(key, first, bytes);
  if (second != nullptr) mix(key, *second, bytes);
  return key;
}

}  // namespace

std::shared_ptr<const Weights> packed(const Form& form, const Source& first, const Source* second,
                                      const SourceBytes& bytes) {
  static std::mutex mutex;
  static std::map<Key, std::weak_ptr<const Weights>> kept;
  const Key key = key_of(form, first, second, bytes);
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<const Weights> found = kept[key].lock();
  if (found == nullptr) {
    found = std::make_shared<const Weights>(pack(form, first, second));
    kept[key] = found;
  }
  return found;
}

}  // namespace dqx
