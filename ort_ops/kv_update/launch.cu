#include "launch.h"

#include "kernel.cuh"

namespace dqx {
namespace {

struct alignas(16) Sixteen {
  uint64_t low, high;
};

dim3 blocks_of(int64_t words) {
  return dim3(static_cast<unsigned>((words + KV_THREADS - 1) / KV_THREADS));
}

template <class Word>
int update(const KvUpdate& call, const void* cache, const void* fresh, const int64_t* start,
           void* y, Stream stream) {
  const int64_t length = call.bytes / static_cast<int>(sizeof(Word));
  const int64_t planes = int64_t{call.batch} * call.heads;
  const auto* given = static_cast<const Word*>(cache);
  const auto* added = static_cast<const Word*>(fresh);
  auto* kept = static_cast<Word*>(y);
  if (cache != y) {
    const int64_t words = planes * call.capacity * length;
    const int error =
        launch<KV_THREADS>(kv_copy<Word>, blocks_of(words), stream, words, given, kept);
    if (error) return error;
  }
  const int64_t words = planes * call.fed * length;
  return launch<KV_THREADS>(kv_write<Word>, blocks_of(words), stream, call, words, added, start,
                            kept);
}

}  // namespace

int launch_kv_update(const KvUpdate& call, const void* cache, const void* fresh,
                     const int64_t* start, void* y, Stream stream) {
  // buffers of a session begin anywhere, where another one shares the memory
  const auto places = reinterpret_cast<uintptr_t>(cache) | reinterpret_cast<uintptr_t>(fresh) |
                      reinterpret_cast<uintptr_t>(y) | static_cast<uintptr_t>(call.bytes);
  if (places % 16 == 0) return update<Sixteen>(call, cache, fresh, start, y, stream);
  if (places % 4 == 0) return update<uint32_t>(call, cache, fresh, start, y, stream);
  return update<uint8_t>(call, cache, fresh, start, y, stream);
}

}  // namespace dqx
