// C functions around the launcher that writes into caches.
#include "kv_update/launch.h"

extern "C" size_t size_of_call() { return sizeof(dqx::KvUpdate); }

extern "C" int launch(const dqx::KvUpdate* call, const void* cache, const void* fresh,
                      const int64_t* start, void* y) {
  return dqx::launch_kv_update(*call, cache, fresh, start, y, nullptr);
}
