#include "launch.h"

#include "kernel.cuh"
#include "tensor_core.cuh"

namespace dqx {
namespace {

constexpr size_t ALIGNMENT = 256;  // of what lies in the workspace
constexpr int INVALID_VALUE = 1;   // cudaErrorInvalidValue
constexpr int MOST_TENSOR_CORE_WIDTH = 128;

int64_t key_heads(const Attention& call) { return int64_t{call.batch} * call.kv_heads; }
int64_t key_count(const Attention& call) { return key_heads(call) * call.keys; }
int64_t query_count(const Attention& call) {
  return int64_t{call.batch} * call.queries * call.heads;
}

int32_t padded_width(const Attention& call) { return (call.width + 3) / 4 * 4; }

unsigned parts(int64_t length, int64_t part) {
  return static_cast<unsigned>((length + part - 1) / part);
}

// Whether tensor cores can be used: chunks of 16 bytes are whole, and sums stay in registers. That
// depends on the width alone, so that a query has the same y whatever others there are.
bool fits_tensor_cores(const Attention& call) {
  return call.width % CHUNK == 0 && call.width <= MOST_TENSOR_CORE_WIDTH;
}

// What the workspace holds, one after another from `start` on; null is good for counting.
struct Workspace {
  Workspace(const Attention& call, void* start) : first(reinterpret_cast<uintptr_t>(start)) {
    const int64_t depth = padded_width(call);
    mean = take<float>(key_heads(call) * call.width);
    q = take<int8_t>(query_count(call) * depth);
    q_scales = take<float>(query_count(call));
    k = take<int8_t>(key_count(call) * depth);
    k_scales = take<float>(key_count(call));
    v = take<ValueCodes>(key_heads(call) * call.width * parts(call.keys, ROUND_KEYS));
    if (fits_tensor_cores(call)) {
      seen = take<Seen>(int64_t{call.batch} * call.queries * parts(call.keys, SEEN_KEYS));
    }
  }

  template <class T>
  T* take(int64_t count) {
    auto* taken = reinterpret_cast<T*>(first + bytes);
    const size_t wanted = static_cast<size_t>(count) * sizeof(T);
    bytes += (wanted + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return taken;
  }

  uintptr_t first;
  size_t bytes = 0;
  float *mean, *q_scales, *k_scales;
  int8_t *q, *k;
  ValueCodes* v;
  Seen* seen = nullptr;
};

template <class T>
int round_all(const Attention& call, const T* q, const T* k, const T* v, const bool* common,
              const T* v_scale, const T* v_zero, const Workspace& room, Stream stream) {
  const auto heads = static_cast<unsigned>(key_heads(call));
  const int32_t depth = padded_width(call);
  const Rounding queries{query_count(call), 1,          nullptr, call.width,
                         depth,             call.q_top, room.q,  room.q_scales};
  const Rounding keys{key_count(call), call.keys,  room.mean, call.width,
                      depth,           call.k_top, room.k,    room.k_scales};
  const dim3 query_blocks(parts(queries.vectors, ROUND_VECTORS));
  const dim3 key_blocks(parts(keys.vectors, ROUND_VECTORS));
  const dim3 value_blocks(parts(call.keys, ROUND_KEYS), heads);
  const dim3 mean_blocks(parts(call.width, LANES), heads);
  int error = launch<ROUND_THREADS>(round_vectors<T>, query_blocks, stream, queries, q);
  if (error) return error;
  error = launch<MEAN_THREADS>(mean_keys<T>, mean_blocks, stream, call, k, common, room.mean);
  if (error) return error;
  error = launch<ROUND_THREADS>(round_vectors<T>, key_blocks, stream, keys, k);
  if (error) return error;
  return launch<ROUND_THREADS>(round_values<T>, value_blocks, stream, call, v, v_scale, v_zero,
                               room.v, room.k_scales);
}

template <int channels>
int attend_by_tiles(const Attention& call, const RoundedOperands& from, const bool* visible,
                    const void* v_scale, const void* v_zero, void* y, Seen* seen, Stream stream) {
  const int64_t words = int64_t{call.batch} * call.queries * parts(call.keys, SEEN_KEYS) * 2;
  const int error = launch<ROUND_THREADS>(pack_visible, dim3(parts(words, ROUND_THREADS)), stream,
                                          call, visible, seen);
  if (error) return error;
  const double root = std::sqrt(static_cast<double>(call.width));
  const TensorCoreOperands given{seen, static_cast<float>(1.4426950408889634 / root)};
  const auto start = [&](auto tile) {
    using Tile = decltype(tile);
    const dim3 blocks(parts(call.queries, Tile::queries), static_cast<unsigned>(call.heads),
                      static_cast<unsigned>(call.batch));
    return launch<Tile::threads>(attend_on_tensor_cores<channels, Tile::threads / 32>, blocks,
                                 stream, call, from, given, v_scale, v_zero, y);
  };
  return call.queries <= 32 ? start(AttendTile<channels, 2>())
                            : start(AttendTile<channels, 4>());
}

template <class T>
int run(const Attention& call, const T* q, const T* k, const T* v, const bool* visible,
        const bool* common, const T* v_scale, const T* v_zero, T* y, const Workspace& room,
        Stream stream) {
  const int error = round_all<T>(call, q, k, v, common, v_scale, v_zero, room, stream);
  if (error) return error;
  const auto quads = static_cast<int32_t>(parts(call.keys, ROUND_KEYS)) * (ROUND_KEYS / QUAD);
  const RoundedOperands from{reinterpret_cast<const int*>(room.q),      room.q_scales,
                             reinterpret_cast<const int*>(room.k),      room.k_scales,
                             reinterpret_cast<const unsigned*>(room.v), padded_width(call) / 4,
                             quads};
  if (fits_tensor_cores(call)) {
    const auto attend_by = call.width <= 64 ? attend_by_tiles<64>
                                            : attend_by_tiles<MOST_TENSOR_CORE_WIDTH>;
    return attend_by(call, from, visible, v_scale, v_zero, y, room.seen, stream);
  }
  const auto kernel = call.width <= 64    ? attend<T, 64>
                      : call.width <= 128 ? attend<T, 128>
                                          : attend<T, MOST_HEAD_WIDTH>;
  const dim3 blocks(parts(call.queries, QUERY_TILE), static_cast<unsigned>(call.heads),
                    static_cast<unsigned>(call.batch));
  return launch<ATTEND_THREADS>(kernel, blocks, stream, call, from, visible, v_scale, v_zero, y);
}

}  // namespace

size_t attention_workspace(const Attention& call) { return Workspace(call, nullptr).bytes; }

int launch_attention(const Attention& call, const void* q, const void* k, const void* v,
                     const bool* visible, const bool* common, const void* v_scale,
                     const void* v_zero, void* y, void* workspace, Stream stream) {
  if (query_count(call) == 0) return 0;
  if (call.keys < 1 || call.width > MOST_HEAD_WIDTH) return INVALID_VALUE;
  const Workspace room(call, workspace);
  const auto all = [&](auto type) {
    using T = decltype(type);
    return run(call, static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v),
               visible, common, static_cast<const T*>(v_scale), static_cast<const T*>(v_zero),
               static_cast<T*>(y), room, stream);
  };
  return call.type == Float::fp16 ? all(Half()) : all(float());
}

}  // namespace dqx
