// Launches the kernel that writes new keys or values into a cache; op.py says what it computes.
#pragma once

#include "../launch.h"

namespace dqx {

struct KvUpdate {
  int32_t batch, heads;
  int32_t capacity, fed;  // positions of the cache, and of what is written into it
  int32_t bytes;          // of one vector
};

// cache, y (batch, heads, capacity, bytes); fresh (batch, heads, fed, bytes); start (batch,).
// y is cache: written in place; else the rest of the cache is copied.
int launch_kv_update(const KvUpdate& call, const void* cache, const void* fresh,
                     const int64_t* start, void* y, Stream stream);

}  // namespace dqx
