#include <algorithm>
#include <cstring>

#include "attention.h"

namespace dqx {

#if defined(__x86_64__)
extern const AttentionKernel ATTENTION_AVX512, ATTENTION_AVXVNNI, ATTENTION_AVX2;
#elif defined(__aarch64__)
extern const AttentionKernel ATTENTION_I8MM, ATTENTION_NEON;
#endif
extern const AttentionKernel ATTENTION_PORTABLE;

const AttentionKernel& attention_kernel(const char* name) {
#if defined(__x86_64__)
  for (const AttentionKernel* one : {&ATTENTION_AVX512, &ATTENTION_AVXVNNI, &ATTENTION_AVX2}) {
    if (std::strcmp(one->name, name) == 0) return *one;
  }
#elif defined(__aarch64__)
  for (const AttentionKernel* one : {&ATTENTION_I8MM, &ATTENTION_NEON}) {
    if (std::strcmp(one->name, name) == 0) return *one;
  }
#else
  (void)name;
#endif
  return ATTENTION_PORTABLE;
}

AttentionSizes::AttentionSizes(const AttentionCall& call) {
  constexpr int64_t PANEL = 64, SCORES = 32768;  // scores of a task: they stay in the second cache
  const auto up = [](int64_t x, int64_t to) { return (x + to - 1) / to * to; };
  panels = (call.keys + PANEL - 1) / PANEL;
  depth = up(call.form.width, 4);
  channels = up(call.form.width, PANEL);
  quads = (call.keys + 3) / 4;
  key_bytes = panels * PANEL * depth;
  value_bytes = quads * channels * 4;
  bytes = up(key_bytes + panels * PANEL * 4 + value_bytes + channels * 4, 64);
  const int64_t fit = panels ? SCORES / (panels * PANEL) : SCORES;
  rows = std::clamp<int64_t>(fit / 6 * 6, 6, MOST_ROWS);
  scratch = 4 * (rows * panels * PANEL + MOST_ROWS * channels) + rows * panels * PANEL;
}

HeadKeys head_keys(const AttentionSizes& sizes, uint8_t* workspace, int64_t index) {
  HeadKeys head;
  head.keys = workspace + index * sizes.bytes;
  head.key_scales = reinterpret_cast<float*>(head.keys + sizes.key_bytes);
  head.values = reinterpret_cast<int8_t*>(head.key_scales + sizes.panels * 64);
  head.value_sums = reinterpret_cast<int32_t*>(head.values + sizes.value_bytes);
  return head;
}

}  // namespace dqx
