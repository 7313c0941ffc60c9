// Writing into a cache as a plugin of TensorRT. What it computes stands in ort_ops/kv_update/op.py.
#include "ort_ops/kv_update/launch.h"

#include "trt_plugins/library/creators.h"
#include "trt_plugins/library/shapes.h"

namespace dqx {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

struct KvKind {
  const char* name;
};

struct KvNode {
  using Kind = KvKind;
  using Build = dqx::BuildInPlace<0>;
  static constexpr int32_t LIKE[] = {0};

  Kind kind;

  template <class Visit>
  void attributes(const Visit&) const {}
  void check_attributes() const {}

  int inputs() const { return 3; }

  bool takes(int place, const DataType* types) const {
    if (place == START) return types[place] == DataType::kINT64;
    if (place > CACHE) return types[place] == types[CACHE];
    return is_float(types[place]) || types[place] == DataType::kINT8;
  }

  void check(const Dims* inputs) const {
    const Dims &cache = inputs[CACHE], &fresh = inputs[FRESH], &start = inputs[START];
    bool fits = cache.nbDims == 4 && fresh.nbDims == 4 && start.nbDims == 1;
    for (const int axis : {0, 1, 3}) fits = fits && same(cache.d[axis], fresh.d[axis]);
    if (!fits || !same(cache.d[0], start.d[0]) || cache.d[3] == 0) {
      refuse("cache %s, fresh %s and start %s do not fit each other", text_of(cache).c_str(),
             text_of(fresh).c_str(), text_of(start).c_str());
    }
  }

  void set_shapes(const nvinfer1::DimsExprs* inputs, nvinfer1::DimsExprs* outputs) const {
    outputs[0] = inputs[CACHE];
  }

  size_t workspace(const nvinfer1::PluginTensorDesc*) const { return 0; }

  int run(const nvinfer1::PluginTensorDesc* inputs, const void* const* tensors,
          void* const* outputs, void*, Stream stream) const {
    const Dims& cache = inputs[CACHE].dims;
    KvUpdate call{};
    call.batch = static_cast<int32_t>(cache.d[0]);
    call.heads = static_cast<int32_t>(cache.d[1]);
    call.capacity = static_cast<int32_t>(cache.d[2]);
    call.fed = static_cast<int32_t>(inputs[FRESH].dims.d[2]);
    call.bytes = static_cast<int32_t>(cache.d[3]) * size_of(inputs[CACHE].type);
    return launch_kv_update(call, tensors[CACHE], tensors[FRESH],
                            static_cast<const int64_t*>(tensors[START]), outputs[0], stream);
  }

 private:
  enum Input { CACHE, FRESH, START };

  static int32_t size_of(DataType type) {
    return type == DataType::kINT8 ? 1 : type == DataType::kHALF ? 2 : 4;
  }
};

constexpr KvKind KINDS[] = {{"DqxKvUpdate"}};

}  // namespace

void add_kv_update(Creators& all) { add_creators<KvNode>(all, KINDS); }

}  // namespace dqx
