#include "layout.h"

#include <algorithm>
#include <cstring>
#include <system_error>
#include <thread>

namespace dqx {
namespace {

constexpr int64_t LONGEST_CHUNK_4 = 128;  // unpacked, a chunk of a panel takes 8 KiB
constexpr int64_t LONGEST_CHUNK_8 = 512;

std::vector<Chunk> cut(const Form& form) {
  const int64_t longest = form.weight_bits == 4 ? LONGEST_CHUNK_4 : LONGEST_CHUNK_8;
  std::vector<Chunk> chunks;
  int64_t start = 0;
  for (int64_t first = 0; first < form.inputs;) {
    const int64_t end = std::min({first + longest, (first / form.group + 1) * form.group,
                                  (first / form.activation_group + 1) * form.activation_group,
                                  form.inputs});
    Chunk chunk;
    chunk.first = static_cast<int32_t>(first);
    chunk.length = static_cast<int32_t>(end - first);
    chunk.start = static_cast<int32_t>(start);
    chunk.padded = (chunk.length + STEP - 1) / STEP * STEP;
    chunk.group = static_cast<int32_t>(first / form.group);
    chunk.activation_group = static_cast<int32_t>(first / form.activation_group);
    chunks.push_back(chunk);
    start += chunk.padded;
    first = end;
  }
  return chunks;
}

// Codes of outputs [first, first + count) of one input, as bytes from 0 on.
void read_codes(const Form& form, const Source& source, int64_t input, int64_t first, int count,
                uint8_t* into) {
  const int64_t place = input * form.outputs + first;
  if (form.weight_bits == 8) {
    const uint8_t* from = static_cast<const uint8_t*>(source.codes) + place;
    for (int i = 0; i < count; ++i) into[i] = from[i] ^ 128;
    return;
  }
  const uint8_t* from = static_cast<const uint8_t*>(source.codes);
  for (int i = 0; i < count; ++i) {
    const int64_t at = place + i;
    into[i] = (from[at / 2] >> (at % 2 * 4) & 15) ^ 8;
  }
}

// A panel's lanes come from one weight, or half and half from two.
struct Part {
  const Source* source;
  int lane, count;  // first lane, and how many of its outputs there are
};

void pack_chunk(const Weights& w, const Chunk& chunk, const Part& part, int64_t output,
                uint8_t* into) {
  const int bits = w.form.weight_bits, deep = bits == 4 ? 8 : 4;
  uint8_t row[PANEL];
  for (int i = 0; i < chunk.padded; ++i) {
    if (i < chunk.length) {
      read_codes(w.form, *part.source, chunk.first + i, output, part.count, row);
    } else {
      std::memset(row, bits == 4 ? 8 : 128, sizeof row);
    }
    uint8_t* at = into + (i / deep) * PANEL * 4 + part.lane * 4 + i % 4;
    for (int lane = 0; lane < part.count; ++lane) {
      if (bits == 8 || i % 8 < 4) at[lane * 4] = row[lane];
      else at[lane * 4] = static_cast<uint8_t>(at[lane * 4] | row[lane] << 4);
    }
  }
}

void pack_part(Weights& w, int64_t panel, const Part& part, int64_t output) {
  const size_t flat = static_cast<size_t>(panel) * PANEL + part.lane, chunks = w.chunks.size();
  const Source& from = *part.source;
  for (int lane = 0; lane < part.count; ++lane) {
    if (w.integer_sums()) w.channel[flat + lane] = from.scales[output + lane];
    if (!w.bias.empty()) w.bias[flat + lane] = from.bias[output + lane];
  }
  for (size_t c = 0; c < chunks; ++c) {
    const Chunk& chunk = w.chunks[c];
    pack_chunk(w, chunk, part, output,
               w.codes.data() + panel * w.panel_bytes + w.chunk_bytes[c]);
    const size_t place = (static_cast<size_t>(panel) * chunks + c) * PANEL + part.lane;
    const int64_t at = chunk.group * w.form.outputs + output;
    for (int lane = 0; lane < part.count; ++lane) {
      if (!w.integer_sums()) w.scales[place + lane] = from.scales[at + lane];
      else w.steps[place + lane] = w.form.two_levels ? from.steps[at + lane] : 1;
    }
  }
}

template <class T>
Aligned<T> zeros(size_t count) {
  Aligned<T> array(count);
  if (count) std::memset(array.data(), 0, count * sizeof(T));
  return array;
}

// Calls work(i) for i in [0, count), shared out to the machine's threads where there is much to do.
template <class Work>
void for_each(int64_t count, Work work) {
  constexpr int64_t SHARE = 16;  // panels that are worth a thread: a tenth of a millisecond
  const auto cores = static_cast<int64_t>(std::thread::hardware_concurrency());
  const int64_t many = std::max<int64_t>(1, std::min(cores, count / SHARE));
  const auto share = [&](int64_t number) {
    for (int64_t i = count * number / many; i < count * (number + 1) / many; ++i) work(i);
  };
  std::vector<std::thread> others;
  for (int64_t number = 1; number < many; ++number) {
    try {
      others.emplace_back(share, number);
    } catch (const std::system_error&) {  // no more threads to be had
      share(number);
    }
  }
  share(0);
  for (std::thread& other : others) other.join();
}

}  // namespace

size_t Weights::bytes() const {
  return codes.size() + 4 * (scales.size() + steps.size() + channel.size() + bias.size());
}

Weights pack(const Form& form, const Source& first, const Source* second) {
  Weights w;
  w.form = form;
  w.chunks = cut(form);
  const size_t chunks = w.chunks.size();
  for (const Chunk& chunk : w.chunks) {
    w.chunk_bytes.push_back(w.panel_bytes);
    w.panel_bytes += int64_t{chunk.padded} * PANEL * form.weight_bits / 8;
    w.padded += chunk.padded;
  }
  w.panels = (form.outputs + w.columns() - 1) / w.columns();
  const size_t lanes = static_cast<size_t>(w.panels) * PANEL;
  w.codes = Aligned<uint8_t>(static_cast<size_t>(w.panels * w.panel_bytes));
  // lanes without an output: whatever their codes, their scales are zero, and nobody reads them
  std::memset(w.codes.data(), 0, w.codes.size());
  if (form.channel) {
    w.steps = zeros<int32_t>(lanes * chunks);
    w.channel = zeros<float>(lanes);
  } else {
    w.scales = zeros<float>(lanes * chunks);
  }
  if (first.bias != nullptr) w.bias = zeros<float>(lanes);
  const int width = w.columns();
  for_each(w.panels, [&](int64_t panel) {
    const int64_t output = panel * width;
    const int count = static_cast<int>(std::min<int64_t>(width, form.outputs - output));
    pack_part(w, panel, {&first, 0, count}, output);
    if (second != nullptr) pack_part(w, panel, {second, width, count}, output);
  });
  return w;
}

}  // namespace dqx
