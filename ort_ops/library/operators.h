// All operators of the library.
#pragma once

#include "abi.h"

namespace dqx {

ort::Status* add_linears(const ort::Api& api, ort::Domain* domain);
ort::Status* add_attention(const ort::Api& api, ort::Domain* domain);

}  // namespace dqx
