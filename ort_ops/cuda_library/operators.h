// All operators of the library for GPUs.
#pragma once

#include "library/abi.h"

namespace dqx {

ort::Status* add_device_linears(const ort::Api& api, ort::Domain* domain);
ort::Status* add_device_attention(const ort::Api& api, ort::Domain* domain);
ort::Status* add_cached_attention(const ort::Api& api, ort::Domain* domain);
ort::Status* add_kv_update(const ort::Api& api, ort::Domain* domain);

}  // namespace dqx
