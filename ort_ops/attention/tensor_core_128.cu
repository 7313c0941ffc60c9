#include "tensor_core.cuh"

namespace dqx {

int attend_128(const Attend& call, const AttendOperands& given, const AttendRoom& room,
              Stream stream) {
  return attend_by_tiles<128>(call, given, room, stream);
}

}  // namespace dqx
