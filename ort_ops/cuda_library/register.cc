// What ONNX Runtime calls of the library for GPUs.
#include "operators.h"

// A version that does not know API 18 gets no operators, and no error: nodes then run as the
// functions that the graph brings.
extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(
    ort::SessionOptions* options, const ort::ApiBase* base) {
  ort::Slot* table = base->get_api(ort::API_VERSION);
  if (table == nullptr) return nullptr;
  const ort::Api api(table);
  ort::Domain* domain = nullptr;
  if (ort::Status* failed = api.create_domain("dqexport", &domain)) return failed;
  if (ort::Status* failed = dqx::add_device_linears(api, domain)) return failed;
  if (ort::Status* failed = dqx::add_device_attention(api, domain)) return failed;
  if (ort::Status* failed = dqx::add_cached_attention(api, domain)) return failed;
  if (ort::Status* failed = dqx::add_kv_update(api, domain)) return failed;
  return api.add_domain(options, domain);
}
