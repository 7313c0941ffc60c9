// Writing into caches on GPUs. What it computes stands in ort_ops/kv_update/op.py.
#include "kv_update/launch.h"

#include "node.h"
#include "operators.h"

namespace dqx {
namespace {

struct KvUpdateNode {
  KvUpdateNode(const DeviceOp&, const ort::Api& api, const ort::KernelInfo*) : api(api) {}
  void compute(ort::Context* context) const;

  ort::Api api;
};

int32_t bytes_of(int type) {
  return type == ort::INT8 ? 1 : type == ort::FLOAT ? 4 : 2;
}

void KvUpdateNode::compute(ort::Context* context) const {
  const Tensor cache = input(api, context, 0), fresh = input(api, context, 1);
  const Tensor start = input(api, context, 2);
  if (cache.shape.size() != 4 || fresh.shape.size() != 4) {
    fail(api, "dqexport: a cache, and what is written into it, have four axes");
  }
  const std::vector<int64_t>& size = cache.shape;
  expect(api, "fresh", fresh, {size[0], size[1], fresh.shape[2], size[3]});
  expect(api, "start", start, {size[0]});
  if (fresh.shape[2] > size[2]) fail(api, "dqexport: the cache has no room for what is written");
  const Output y = output(api, context, 0, size);
  if (cache.count == 0) return;
  KvUpdate call{};
  call.batch = static_cast<int32_t>(size[0]);
  call.heads = static_cast<int32_t>(size[1]);
  call.capacity = static_cast<int32_t>(size[2]);
  call.fed = static_cast<int32_t>(fresh.shape[2]);
  call.bytes = static_cast<int32_t>(size[3]) * bytes_of(cache.type);
  launched(api, launch_kv_update(call, cache.data, fresh.data,
                                 static_cast<const int64_t*>(start.data), y.data,
                                 stream(api, context)));
}

DeviceOp kv_update(int type) {
  DeviceOp op = device_operator<DeviceOp, KvUpdateNode>("DqxKvUpdate", 3, 1);
  op.types_[0] = op.types_[1] = op.output_types_[0] = type;
  op.types_[2] = ort::INT64;
  in_place<0>(op);
  return op;
}

const DeviceOp OPS[] = {kv_update(ort::FLOAT), kv_update(ort::FLOAT16), kv_update(ort::INT8)};

}  // namespace

ort::Status* add_kv_update(const ort::Api& api, ort::Domain* domain) {
  return add_all(api, domain, OPS);
}

}  // namespace dqx
