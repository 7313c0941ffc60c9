#include "launch.h"

#include "prepare.cuh"
#include "room.cuh"

namespace dqx {
namespace {

int64_t key_heads(const Attention& call) { return int64_t{call.batch} * call.kv_heads; }
int64_t key_count(const Attention& call) { return key_heads(call) * call.keys; }
int64_t query_count(const Attention& call) {
  return int64_t{call.batch} * call.queries * call.heads;
}

int32_t padded_width(const Attention& call) { return (call.width + 3) / 4 * 4; }

unsigned parts(int64_t length, int64_t part) {
  return static_cast<unsigned>((length + part - 1) / part);
}

Attend attend_call(const Attention& call) {
  return {call.batch, call.heads, call.kv_heads, call.queries, call.keys, call.width, 8,
          call.v_top ? 8 : 16, call.p_top, Float::fp16, call.type};
}

// What the workspace holds, one after another from `start` on; null is good for counting.
struct Workspace {
  Workspace(const Attention& call, void* start) {
    Room room(start);
    mean = room.take<float>(key_heads(call) * call.width);
    q = room.take<int8_t>(query_count(call) * padded_width(call));
    q_scales = room.take<float>(query_count(call));
    k = room.take<int8_t>(key_count(call) * call.width);
    k_scales = room.take<float>(key_count(call));
    v = room.take<int8_t>(key_count(call) * call.width * (call.v_top ? 1 : 2));
    seen = room.take<Seen>(int64_t{call.batch} * call.queries * parts(call.keys, SEEN_KEYS));
    rest = room.take<int8_t>(static_cast<int64_t>(attend_workspace(attend_call(call))));
    bytes = room.bytes;
  }

  float *mean, *q_scales, *k_scales;
  int8_t *q, *k, *v, *rest;
  Seen* seen;
  size_t bytes;
};

template <class T>
int prepare_all(const Attention& call, const T* q, const T* k, const T* v, const bool* visible,
                const bool* common, const T* v_scale, const T* v_zero, const Workspace& room,
                Stream stream) {
  const Rounding queries{query_count(call),  1,          nullptr, call.width,
                         padded_width(call), call.q_top, room.q,  room.q_scales};
  const Rounding keys{key_count(call), call.keys,  room.mean, call.width,
                      call.width,      call.k_top, room.k,    room.k_scales};
  const int64_t words = int64_t{call.batch} * call.queries * parts(call.keys, SEEN_KEYS) * 2;
  const unsigned means = static_cast<unsigned>(key_heads(call)) * parts(call.width, LANES);
  const unsigned query_blocks = parts(queries.vectors, ROUND_VECTORS);
  const dim3 first(means + parts(words, MEAN_THREADS));
  const dim3 second(query_blocks + parts(keys.vectors, ROUND_VECTORS));
  const int error = launch<MEAN_THREADS>(means_and_words<T>, first, stream, call, k, common,
                                         room.mean, visible, room.seen, means);
  if (error) return error;
  return launch<ROUND_THREADS>(round_all<T>, second, stream, call, queries, q, query_blocks, keys,
                               k, v, v_scale, v_zero, room.v);
}

}  // namespace

size_t attention_workspace(const Attention& call) { return Workspace(call, nullptr).bytes; }

int launch_attention(const Attention& call, const void* q, const void* k, const void* v,
                     const bool* visible, const bool* common, const void* v_scale,
                     const void* v_zero, void* y, void* workspace, Stream stream) {
  if (query_count(call) == 0) return 0;
  if (!can_attend(attend_call(call))) return INVALID_VALUE;
  const Workspace room(call, workspace);
  const auto round = [&](auto type) {
    using T = decltype(type);
    return prepare_all(call, static_cast<const T*>(q), static_cast<const T*>(k),
                       static_cast<const T*>(v), visible, common, static_cast<const T*>(v_scale),
                       static_cast<const T*>(v_zero), room, stream);
  };
  const int error = call.type == Float::fp16 ? round(Half()) : round(float());
  if (error) return error;
  return attend(attend_call(call),
                {room.q, room.q_scales, room.k, room.k_scales, room.v, room.seen, v_scale, v_zero,
                 y},
                room.rest, stream);
}

}  // namespace dqx
