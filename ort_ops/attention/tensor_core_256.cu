#include "tensor_core.cuh"

namespace dqx {

int attend_256(const Attend& call, const AttendOperands& given, const AttendRoom& room,
              Stream stream) {
  return attend_by_tiles<256>(call, given, room, stream);
}

}  // namespace dqx
