// Runs launchers over many shapes in memory of exactly their size, for the sanitizers to watch.
//
//     launch_bounds [forms [late] [backwards]]     the last two where warps are threads (on_threads.h)
//
// On a GPU memory is what managed.cc makes of it, and compute-sanitizer watches.
// Prints a sum over all outputs, and how often rows of shared memory met on its banks.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>

#include "attention/launch.h"
#include "cached_attention/launch.h"
#include "kv_update/launch.h"
#include "linear_w4a8/launch.h"
#include "warp.cuh"

namespace {

std::mt19937 generator(7);

int up_to(int most) { return 1 + static_cast<int>(generator() % static_cast<unsigned>(most)); }

// Bytes that lie alone in memory, each of them `value`.
std::unique_ptr<char[]> bytes(size_t count, int value) {
  std::unique_ptr<char[]> made(new char[count]);
  std::memset(made.get(), value, count);
  return made;
}

// Likewise, each of them `value` or up to 3 less.
std::unique_ptr<char[]> about(size_t count, int value) {
  auto made = bytes(count, value);
  for (size_t i = 0; i < count; ++i) made[i] = static_cast<char>(value - up_to(4) + 1);
  return made;
}

#ifdef DQX_ON_CPU
bool finished() { return true; }
long bank_conflicts() { return dqx::bank_conflicts.load(); }
#else
bool finished() { return cudaDeviceSynchronize() == cudaSuccess; }
long bank_conflicts() { return 0; }  // that are counted
#endif

uint64_t sum = 0;

size_t size(dqx::Float type) { return type == dqx::Float::fp32 ? 4 : 2; }

// Whether none of the numbers is what memory was filled with, not a number: all were written.
bool written(const char* y, size_t count, size_t each) {
  if (!finished()) return false;
  for (size_t i = 0; i < count * each; ++i) sum = sum * 31 + static_cast<unsigned char>(y[i]);
  for (size_t i = 0; i < count; ++i) {
    if (!std::memcmp(y + i * each, "\xff\xff\xff\xff", each)) return false;
  }
  return true;
}

bool linear() {
#ifdef DQX_ON_CPU
  dqx::host_capability = up_to(2) == 1 ? 87 : 90;
#endif
  dqx::Linear call{};
  call.activation_group = up_to(40);
  call.depth = call.activation_group * up_to(6);
  call.rows = up_to(70) - 1;
  call.width = up_to(140);
  call.group = up_to(call.depth);
  if (up_to(3) > 1) {  // of tensor cores
    call.depth = call.activation_group = 32 * up_to(40);
    call.width = 32 * up_to(10);
    call.group = 32 * up_to(4);
  }
  call.step = 0.01f;
  call.weight_bits = up_to(2) * 4;
  call.activation_bits = 2 << up_to(3);
  call.channel = call.activation_bits < 16 && up_to(2) == 1;
  call.gated = up_to(2) == 1;
  call.type = static_cast<dqx::Float>(up_to(3) - 1);
  call.scales = static_cast<dqx::Float>(up_to(2) - 1);
  const auto depth = static_cast<size_t>(call.depth), width = static_cast<size_t>(call.width);
  const auto rows = static_cast<size_t>(call.rows);
  const auto group = static_cast<size_t>(call.group);
  const size_t groups = (depth + group - 1) / group;
  // 0x3c3c is a number of about 1 in fp16, 0x3c3c3c3c one of about 0.01 in fp32
  const auto codes = about((depth * width * static_cast<size_t>(call.weight_bits) + 7) / 8, 0x5a);
  const auto scales = bytes((call.channel ? 1 : groups) * width * size(call.scales), 0x3c);
  const auto steps = about(groups * width, 5), bias = bytes(width * size(call.type), 0x3c);
  const auto x = about(rows * depth * size(call.type), 0x3c);
  const auto y = bytes(rows * width * size(call.type), 0xff);
  const auto workspace = bytes(dqx::linear_workspace(call), 0xff);
  const bool stepped = call.channel && call.weight_bits == 4;
  const dqx::LinearWeight weight{
      codes.get(), scales.get(),
      stepped ? reinterpret_cast<const int8_t*>(steps.get()) : nullptr};
  const dqx::LinearWeight weights[2] = {weight, weight};
  const int error = dqx::launch_linear(call, x.get(), weights, up_to(2) == 1 ? bias.get() : nullptr,
                                       y.get(), workspace.get(), nullptr);
  return !error && written(y.get(), rows * width, size(call.type));
}

bool kv_update() {
  dqx::KvUpdate call{};
  call.batch = up_to(3);
  call.heads = up_to(3);
  call.capacity = up_to(30);
  call.fed = up_to(call.capacity);
  call.bytes = up_to(70);
  const size_t vectors = static_cast<size_t>(call.batch * call.heads);
  const size_t length = static_cast<size_t>(call.bytes);
  const size_t count = vectors * static_cast<size_t>(call.capacity) * length;
  const size_t behind = up_to(2) == 1 ? 0 : 4;  // an address that is aligned for small words alone
  const auto cache = bytes(count, 1), y = bytes(count + behind, 0xff);
  const auto fresh = bytes(vectors * static_cast<size_t>(call.fed) * length, 2);
  std::unique_ptr<int64_t[]> start(new int64_t[static_cast<size_t>(call.batch)]);
  for (int row = 0; row < call.batch; ++row) start[row] = up_to(40) - 5;
  const bool in_place = up_to(2) == 1;
  char* written_to = in_place ? cache.get() : y.get() + behind;
  const int error = dqx::launch_kv_update(call, cache.get(), fresh.get(), start.get(), written_to,
                                          nullptr);
  return !error && written(written_to, count, 1);
}

bool attention() {
  dqx::Attention call{};
  call.batch = up_to(3);
  call.kv_heads = up_to(2);
  call.heads = call.kv_heads * up_to(2);
  call.queries = up_to(70) - 1;
  call.keys = up_to(4) == 1 ? up_to(300) : up_to(140);  // some of them in parts
  call.width = up_to(4) == 1 ? up_to(dqx::MOST_HEAD_WIDTH) : up_to(20);
  if (up_to(2) == 1) call.width = up_to(9) * 16;  // of tensor cores, and one more
  call.q_top = call.k_top = up_to(2) == 1 ? 7 : 127;
  call.v_top = call.p_top = up_to(2) == 1 ? 15 : 255;
  if (up_to(3) == 1) call.v_top = call.p_top = 0;
  call.type = static_cast<dqx::Float>(up_to(2) - 1);
  const auto rows = static_cast<size_t>(call.batch * call.queries);
  const auto keys = static_cast<size_t>(call.batch * call.keys);
  const auto channels = static_cast<size_t>(call.kv_heads * call.width);
  const size_t queried = rows * static_cast<size_t>(call.heads * call.width);
  const auto q = about(queried * size(call.type), 0x3c), y = bytes(queried * size(call.type), 0xff);
  const auto k = about(keys * channels * size(call.type), 0x3c);
  const auto v = about(keys * channels * size(call.type), 0x3c);
  const auto scale = bytes(channels * size(call.type), 0x1c);  // of values that have no zero code
  const auto zero = bytes(channels * size(call.type), 0);
  const auto visible = bytes(rows * static_cast<size_t>(call.keys), up_to(2) - 1);
  const auto common = bytes(keys, 1);
  const auto workspace = bytes(dqx::attention_workspace(call), 0xff);
  const int error = dqx::launch_attention(
      call, q.get(), k.get(), v.get(), reinterpret_cast<const bool*>(visible.get()),
      reinterpret_cast<const bool*>(common.get()), scale.get(), zero.get(), y.get(),
      workspace.get(), nullptr);
  return !error && written(y.get(), queried, size(call.type));
}

bool cached_attention() {
  dqx::CachedAttention call{};
  call.batch = up_to(3);
  call.kv_heads = up_to(2);
  call.heads = call.kv_heads * up_to(4);
  call.capacity = up_to(4) == 1 ? up_to(300) : up_to(140);
  call.queries = up_to(call.capacity < 40 ? call.capacity : 40);
  call.width = up_to(3) == 1 ? up_to(20) * 2 : up_to(8) * 32;
  call.q_top = up_to(2) == 1 ? 7 : 127;
  call.k_bits = up_to(2) * 4;
  call.v_bits = 2 << up_to(3);
  call.p_top = call.v_bits == 16 ? 0 : up_to(2) == 1 ? 15 : 255;
  call.rotary = up_to(call.width / 2 + 1) * 2 - 2;
  call.type = static_cast<dqx::Float>(up_to(2) - 1);
  const size_t each = size(call.type), width = static_cast<size_t>(call.width);
  const auto rows = static_cast<size_t>(call.batch * call.queries);
  const auto keys = static_cast<size_t>(call.batch * call.kv_heads * call.capacity);
  const auto channels = static_cast<size_t>(call.kv_heads) * width;
  const size_t queried = rows * static_cast<size_t>(call.heads) * width;
  const size_t turns = rows * static_cast<size_t>(call.rotary / 2) * each;
  const size_t key_bytes = keys * (width * static_cast<size_t>(call.k_bits) / 8);
  const size_t value_bytes =
      keys * (call.v_bits == 16 ? width * each : width * static_cast<size_t>(call.v_bits) / 8);
  const auto q = about(queried * each, 0x3c), y = bytes(queried * each, 0xff);
  const auto k = about(rows * channels * each, 0x3c), v = about(rows * channels * each, 0x3c);
  const auto k_cache = about(key_bytes, 0x3c), v_cache = about(value_bytes, 0x3c);
  const auto k_scales = bytes(keys * each, 0x1c), scale = bytes(channels * each, 0x1c);
  const auto zero = bytes(channels * each, 0), turn = bytes(turns, 0x3c);
  const auto workspace = bytes(dqx::cached_attention_workspace(call), 0xff);
  const auto count = static_cast<size_t>(call.batch);
  std::unique_ptr<int64_t[]> start(new int64_t[count]);
  for (size_t row = 0; row < count; ++row) start[row] = up_to(call.capacity) - 3;
  std::unique_ptr<int32_t[]> blocks(new int32_t[count * static_cast<size_t>(call.capacity)]);
  for (size_t i = 0; i < count * static_cast<size_t>(call.capacity); ++i) {
    blocks[i] = static_cast<int32_t>(i) / (call.capacity + 1) + up_to(5);
  }
  std::unique_ptr<int32_t[]> reach(new int32_t[rows]);
  for (size_t i = 0; i < rows; ++i) reach[i] = up_to(6) - 1;
  const bool in_place = up_to(2) == 1;
  const auto keys_left = bytes(key_bytes, 0xff), values_left = bytes(value_bytes, 0xff);
  const auto scales_left = bytes(keys * each, 0xff);
  const auto* kept = reinterpret_cast<int8_t*>(k_cache.get());
  const dqx::CachedOperands operands{q.get(),       k.get(),      v.get(),     kept,
                                     k_scales.get(), v_cache.get(), start.get(), blocks.get(),
                                     reach.get(),   zero.get(),   scale.get(), zero.get(),
                                     turn.get(),    turn.get()};
  char* left = in_place ? k_cache.get() : keys_left.get();
  char* of_values = in_place ? v_cache.get() : values_left.get();
  char* of_keys = in_place ? k_scales.get() : scales_left.get();
  const dqx::CachedResults results{y.get(), reinterpret_cast<int8_t*>(left), of_keys, of_values};
  const int error =
      dqx::launch_cached_attention(call, operands, results, workspace.get(), nullptr);
  written(left, key_bytes, 1);  // into the sum: all bits are codes, also those of poison
  written(of_values, value_bytes, 1);
  return !error && written(of_keys, keys, each) && written(y.get(), queried, each);
}

}  // namespace

int main(int count, char** words) {
  const int forms = count > 1 ? std::atoi(words[1]) : 60;
#ifdef DQX_ON_THREADS
  for (int i = 2; i < count; ++i) {
    dqx::late_copies |= !std::strcmp(words[i], "late");
    dqx::backwards |= !std::strcmp(words[i], "backwards");
  }
#endif
  for (int form = 0; form < forms; ++form) {
    if (!linear() || !kv_update() || !attention() || !cached_attention()) {
      std::printf("form %d failed or left outputs unwritten\n", form);
      return 1;
    }
  }
  std::printf("%d forms, %llx, %ld bank conflicts\n", forms, static_cast<unsigned long long>(sum),
              bank_conflicts());
}
