// A workspace that is handed out piece by piece.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dqx {
namespace {

constexpr size_t ROOM_ALIGNMENT = 256;

struct Room {
  explicit Room(void* start) : first(reinterpret_cast<uintptr_t>(start)) {}  // null: for counting

  template <class T>
  T* take(int64_t count) {
    auto* taken = reinterpret_cast<T*>(first + bytes);
    const size_t wanted = static_cast<size_t>(count) * sizeof(T);
    bytes += (wanted + ROOM_ALIGNMENT - 1) / ROOM_ALIGNMENT * ROOM_ALIGNMENT;
    return taken;
  }

  uintptr_t first;
  size_t bytes = 0;
};

}  // namespace
}  // namespace dqx
