#include "launch.h"

#include "../attention/paths.h"
#include "../attention/room.cuh"
#include "../kv_update/kernel.cuh"
#include "prepare.cuh"

namespace dqx {
namespace {

struct alignas(16) Sixteen {
  uint64_t low, high;
};

int64_t query_count(const CachedAttention& call) { return int64_t{call.batch} * call.queries; }
int64_t key_count(const CachedAttention& call) {
  return int64_t{call.batch} * call.kv_heads * call.capacity;
}

unsigned parts(int64_t length, int64_t part) {
  return static_cast<unsigned>((length + part - 1) / part);
}

int64_t seen_count(const CachedAttention& call) {
  return query_count(call) * parts(call.capacity, SEEN_KEYS);
}

Attend attend_call(const CachedAttention& call) {
  return {call.batch, call.heads, call.kv_heads, call.queries, call.capacity, call.width,
          call.k_bits, call.v_bits, call.p_top, call.type, call.type};
}

// What the workspace holds, one after another from `start` on; null is good for counting.
struct Workspace {
  Workspace(const CachedAttention& call, void* start) {
    Room room(start);
    const int64_t queries = query_count(call) * call.heads;
    q = room.take<int8_t>(queries * ((call.width + 3) / 4 * 4));
    q_scales = room.take<float>(queries);
    k_scales = room.take<float>(call.type == Float::fp16 ? key_count(call) : 0);
    seen = room.take<Seen>(seen_count(call));
    rest = room.take<int8_t>(static_cast<int64_t>(attend_workspace(attend_call(call))));
    bytes = room.bytes;
  }

  int8_t *q, *rest;
  float *q_scales, *k_scales;
  Seen* seen;
  size_t bytes;
};

template <class Word>
int copy_words(const void* from, void* to, int64_t bytes, Stream stream) {
  const int64_t words = bytes / static_cast<int64_t>(sizeof(Word));
  return launch<KV_THREADS>(kv_copy<Word>, dim3(parts(words, KV_THREADS)), stream, words,
                            static_cast<const Word*>(from), static_cast<Word*>(to));
}

// Nothing to do in place.
int copy(const void* from, void* to, int64_t bytes, Stream stream) {
  if (from == to) return 0;
  const auto places = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to) |
                      static_cast<uintptr_t>(bytes);
  return places % 16 == 0 ? copy_words<Sixteen>(from, to, bytes, stream)
                          : copy_words<uint8_t>(from, to, bytes, stream);
}

int copy_caches(const CachedAttention& call, const CachedOperands& from, const CachedResults& to,
                Stream stream) {
  const int64_t vectors = key_count(call), each = call.type == Float::fp16 ? 2 : 4;
  const int64_t of_value = call.v_bits == 16 ? call.width * each : call.width * call.v_bits / 8;
  int error = copy(from.k_cache, to.k_cache, vectors * (call.width * call.k_bits / 8), stream);
  if (error) return error;
  error = copy(from.k_scales, to.k_scales, vectors * each, stream);
  return error ? error : copy(from.v_cache, to.v_cache, vectors * of_value, stream);
}

template <class T>
int prepare_all(const CachedAttention& call, const CachedOperands& from, const CachedResults& to,
                const Workspace& room, Stream stream) {
  const bool half = call.type == Float::fp16;
  const int64_t queries = query_count(call);
  const unsigned fed = parts(queries * call.kv_heads, ROUND_VECTORS);
  const Shares shares{parts(queries * call.heads, ROUND_VECTORS), fed, fed,
                      half ? parts(key_count(call), ROUND_THREADS) : 0,
                      parts(2 * seen_count(call), ROUND_THREADS)};
  const Prepared into{room.q, room.q_scales, half ? room.k_scales : nullptr, room.seen};
  const dim3 blocks(shares.queries + 2 * fed + shares.scales + shares.words);
  return launch<ROUND_THREADS>(prepare<T>, blocks, stream, call, from, to, into, shares);
}

bool is_whole(const CachedAttention& call) {
  const bool halved = call.k_bits == 4 || call.v_bits == 4;
  return !(halved && call.width % 2) && call.rotary % 2 == 0 && call.rotary <= call.width;
}

}  // namespace

size_t cached_attention_workspace(const CachedAttention& call) {
  return Workspace(call, nullptr).bytes;
}

int launch_cached_attention(const CachedAttention& call, const CachedOperands& operands,
                            const CachedResults& results, void* workspace, Stream stream) {
  if (!can_attend(attend_call(call)) || !is_whole(call)) return INVALID_VALUE;
  int error = copy_caches(call, operands, results, stream);
  if (error || query_count(call) == 0) return error;
  const Workspace room(call, workspace);
  const bool half = call.type == Float::fp16;
  error = half ? prepare_all<Half>(call, operands, results, room, stream)
               : prepare_all<float>(call, operands, results, room, stream);
  if (error) return error;
  const float* scales = half ? room.k_scales : static_cast<const float*>(results.k_scales);
  return attend(attend_call(call),
                {room.q, room.q_scales, results.k_cache, scales, results.v_cache, room.seen,
                 operands.v_scale, operands.v_zero, results.y},
                room.rest, stream);
}

}  // namespace dqx
