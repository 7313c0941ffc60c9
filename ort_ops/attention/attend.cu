#include "attend.cuh"

#include "join.cuh"
#include "room.cuh"

namespace dqx {
namespace {

constexpr int BLOCKS_EACH = 3;  // of a multiprocessor, at a time
constexpr int PART_TILES = 2;   // of keys that are worth a part

int64_t rows_of_head(const Attend& call) {
  return int64_t{call.queries} * (call.heads / call.kv_heads);
}
int64_t row_count(const Attend& call) { return rows_of_head(call) * call.kv_heads * call.batch; }
int64_t row_tiles(const Attend& call) { return (rows_of_head(call) + ROW_TILE - 1) / ROW_TILE; }
int64_t key_tiles(const Attend& call) { return (int64_t{call.keys} + SEEN_KEYS - 1) / SEEN_KEYS; }

// Parts of the keys: as many as all multiprocessors have room for.
int parts_of_keys(const Attend& call) {
  const int64_t blocks = row_tiles(call) * call.kv_heads * call.batch;
  if (blocks == 0) return 1;
  const int64_t wanted = int64_t{BLOCKS_EACH} * multiprocessors() / blocks;
  const int64_t most = key_tiles(call) / PART_TILES;
  const int64_t parts = wanted < most ? wanted : most;
  return parts < 1 ? 1 : static_cast<int>(parts);
}

// One after another from `start` on. Parts take no more than all blocks at a time leave, so that a
// larger call never needs less.
size_t place_room(const Attend& call, void* start, AttendRoom& room) {
  Room rest(start);
  const int64_t blocks = int64_t{BLOCKS_EACH} * multiprocessors();
  const int64_t in_parts = key_tiles(call) < 2 * PART_TILES ? 0 : blocks * ROW_TILE;
  room.stops = rest.take<Stop>(call.batch * row_tiles(call) * key_tiles(call));
  room.stop_counts = rest.take<StopCount>(call.batch * row_tiles(call));
  room.largest = rest.take<float>(row_count(call) + in_parts);
  room.products = rest.take<int>(in_parts * call.width);
  room.totals = rest.take<int>(in_parts);
  room.parts = parts_of_keys(call);
  room.rows = row_count(call);
  room.rows_of_head = rows_of_head(call);
  return rest.bytes;
}

bool begins_at(const void* place, int multiple) {
  return reinterpret_cast<uintptr_t>(place) % static_cast<uintptr_t>(multiple) == 0;
}

// Whether tensor cores can be used: chunks of 16 bytes are whole. A call's sizes alone decide, so
// that a query has the same y whatever others there are.
bool fits_tensor_cores(const Attend& call, const AttendOperands& given) {
  const int multiple = call.k_bits == 4 || call.v_bits == 4 ? 32 : 16;
  const bool halves = call.v_bits != 16 || call.v_type == Float::fp16;
  return call.width % multiple == 0 && halves && begins_at(given.k, 16) && begins_at(given.v, 16) &&
         begins_at(given.y, 16);
}

int join(const Attend& call, const AttendOperands& given, const AttendRoom& room, Stream stream) {
  const int64_t channels = row_count(call) * call.width;
  const dim3 blocks(static_cast<unsigned>((channels + JOIN_THREADS - 1) / JOIN_THREADS));
  const auto kernel = call.v_bits == 16 ? join_parts<float> : join_parts<int>;
  return launch<JOIN_THREADS>(kernel, blocks, stream, call, given, room);
}

}  // namespace

bool can_attend(const Attend& call) {
  const int64_t most = int64_t{call.p_top} * (call.v_bits == 8 ? 255 : 15);  // of a product
  return call.keys > 0 && call.width <= MOST_HEAD_WIDTH && call.keys * most < int64_t{1} << 31;
}

size_t attend_workspace(const Attend& call) {
  AttendRoom room;
  return place_room(call, nullptr, room);
}

int attend(const Attend& call, const AttendOperands& given, void* workspace, Stream stream) {
  AttendRoom room;
  place_room(call, workspace, room);
  const dim3 lists(static_cast<unsigned>(row_tiles(call)), static_cast<unsigned>(call.batch));
  const int listed = launch<LIST_THREADS>(list_stops, lists, stream, call, given.seen, room);
  if (listed) return listed;
  if (!fits_tensor_cores(call, given)) {
    room.parts = 1;
    return attend_plain(call, given, room, stream);
  }
  const auto attend_by = call.width <= 64    ? attend_64
                         : call.width <= 128 ? attend_128
                                             : attend_256;
  const int error = attend_by(call, given, room, stream);
  return error || room.parts == 1 ? error : join(call, given, room, stream);
}

}  // namespace dqx
