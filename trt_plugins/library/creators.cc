// The two functions that TensorRT looks for in a plugin library. Nothing is registered when the
// library is loaded: the registry of 11 and of TensorRT for RTX has another layout than that of 10.
#include "creators.h"

extern "C" {

__attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(
    int32_t& count) {
  static const auto& all = *[] {
    auto* found = new dqx::Creators;
    dqx::add_linear(*found);
    dqx::add_attention(*found);
    dqx::add_kv_update(*found);
    dqx::add_cached_attention(*found);
    return found;
  }();
  count = static_cast<int32_t>(all.size());
  return all.data();
}

__attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  dqx::use_logger_of(finder);
}

}  // extern "C"
