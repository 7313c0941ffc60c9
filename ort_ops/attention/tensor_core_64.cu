#include "tensor_core.cuh"

namespace dqx {

int attend_64(const Attend& call, const AttendOperands& given, const AttendRoom& room,
              Stream stream) {
  return attend_by_tiles<64>(call, given, room, stream);
}

}  // namespace dqx
