// The library's two functions.
#include "linear_w4a8/kernel.h"
#include "operators.h"

// Called by ONNX Runtime. A version that does not know API 18 gets no operators, and no error: nodes
// then run as the functions that the graph brings.
extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(
    ort::SessionOptions* options, const ort::ApiBase* base) {
  ort::Slot* table = base->get_api(ort::API_VERSION);
  if (table == nullptr) return nullptr;
  const ort::Api api(table);
  ort::Domain* domain = nullptr;
  if (ort::Status* failed = api.create_domain("dqexport", &domain)) return failed;
  if (ort::Status* failed = dqx::add_linears(api, domain)) return failed;
  if (ort::Status* failed = dqx::add_attention(api, domain)) return failed;
  return api.add_domain(options, domain);
}

// For programs that ask which kernel runs here; null where DQX_KERNEL names none.
extern "C" __attribute__((visibility("default"))) const char* dqx_kernel_name() {
  const dqx::Kernel* kernel = dqx::choose_kernel();
  return kernel == nullptr ? nullptr : kernel->name;
}
