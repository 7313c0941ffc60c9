#include "plain.cuh"

namespace dqx {
namespace {

template <int channels>
int attend_within(const Attend& call, const AttendOperands& given, const AttendRoom& room,
                  Stream stream) {
  const int64_t rows = int64_t{call.queries} * (call.heads / call.kv_heads);
  const dim3 blocks(static_cast<unsigned>((rows + PLAIN_ROWS - 1) / PLAIN_ROWS),
                    static_cast<unsigned>(call.kv_heads), static_cast<unsigned>(call.batch));
  const auto kernel =
      call.v_bits == 16 ? attend_on_dp4a<channels, true> : attend_on_dp4a<channels, false>;
  return launch<PLAIN_THREADS>(kernel, blocks, stream, call, given, room);
}

}  // namespace

int attend_plain(const Attend& call, const AttendOperands& given, const AttendRoom& room,
                 Stream stream) {
  return call.width <= 64 ? attend_within<64>(call, given, room, stream)
                          : attend_within<MOST_HEAD_WIDTH>(call, given, room, stream);
}

}  // namespace dqx
