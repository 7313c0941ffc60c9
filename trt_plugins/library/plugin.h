// An operator as a plugin: IPluginV3 as TensorRT 10.3 to 11 and TensorRT for RTX have it.
//
// What differs from operator to operator is a Node, a struct that is copied freely:
//   using Kind = …;                      // tells operators of one Node apart; has `name`
//   using Build = dqx::Build;            // or BuildInPlace, where outputs take memory of inputs
//   static constexpr int32_t LIKE[];     // of each output: an input that has its type
//   Kind kind;                           // the first member; attributes follow
//   void attributes(const Visit&);       // a template; see fields.h
//   void check_attributes() const;       // refuses values that no node may have
//   int inputs() const;                  // how many there are
//   bool takes(int place, const DataType* types) const;  // of inputs up to `place`
//   void check(const Dims* inputs) const;                // refuses shapes; -1: not known yet
//   void set_shapes(const DimsExprs* inputs, DimsExprs* outputs) const;
//   size_t workspace(const PluginTensorDesc* inputs) const;  // bytes
//   int run(const PluginTensorDesc* inputs, const void* const* tensors, void* const* outputs,
//           void* workspace, Stream stream) const;  // what a launcher returns
// All tensors are row-major.
#pragma once

#include <iterator>
#include <new>
#include <vector>

#include "fields.h"
#include "ort_ops/launch.h"

namespace dqx {

constexpr char NAMESPACE[] = "dqexport", VERSION[] = "1";

inline Float float_of(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kHALF: return Float::fp16;
    case nvinfer1::DataType::kBF16: return Float::bf16;
    default: return Float::fp32;
  }
}

// What all operators take.
inline bool is_float(nvinfer1::DataType type) {
  return type == nvinfer1::DataType::kHALF || type == nvinfer1::DataType::kFLOAT;
}

using Build = nvinfer1::IPluginV3OneBuild;

// Of each output the input whose memory it takes, -1: none. The builder refuses it unless the
// preview feature for aliased tensors is on.
template <int32_t... inputs>
struct BuildInPlace : nvinfer1::IPluginV3OneBuildV2 {
  int32_t getAliasedInput(int32_t output) noexcept override {
    constexpr int32_t OF[] = {inputs...};
    return OF[output];
  }
};

template <class Node>
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public Node::Build,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit Plugin(const Node& node) : node_(node) {}

  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE:
        return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD:
        return static_cast<typename Node::Build*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME:
        return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }

  nvinfer1::IPluginV3* clone() noexcept override { return new (std::nothrow) Plugin(node_); }

  const char* getPluginName() const noexcept override { return node_.kind.name; }
  const char* getPluginVersion() const noexcept override { return VERSION; }
  const char* getPluginNamespace() const noexcept override { return NAMESPACE; }

  int32_t getNbOutputs() const noexcept override { return OUTPUTS; }

  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t, const nvinfer1::DataType* inputs,
                             int32_t count) const noexcept override {
    return guarded(node_.kind.name, [&] {
      check_count(count);
      for (int place = 0; place < count; ++place) {
        if (!node_.takes(place, inputs)) {
          refuse("input %d is not to be %s", place, name_of(inputs[place]));
        }
      }
      for (int32_t i = 0; i < OUTPUTS; ++i) outputs[i] = inputs[Node::LIKE[i]];
    });
  }

  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t count,
                          const nvinfer1::DimsExprs*, int32_t, nvinfer1::DimsExprs* outputs,
                          int32_t, nvinfer1::IExprBuilder&) noexcept override {
    return guarded(node_.kind.name, [&] {
      check_count(count);
      std::vector<nvinfer1::Dims> shapes(static_cast<size_t>(count));
      for (size_t i = 0; i < shapes.size(); ++i) shapes[i] = known(inputs[i]);
      node_.check(shapes.data());
      node_.set_shapes(inputs, outputs);
    });
  }

  bool supportsFormatCombination(int32_t place, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 int32_t, int32_t) noexcept override {
    std::vector<nvinfer1::DataType> types;
    for (int32_t i = 0; i <= place; ++i) types.push_back(tensors[i].desc.type);
    const int32_t output = place - node_.inputs();
    const bool fits = output < 0 ? node_.takes(place, types.data())
                                 : types.back() == types[static_cast<size_t>(Node::LIKE[output])];
    return fits && tensors[place].desc.format == nvinfer1::TensorFormat::kLINEAR;
  }

  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t count,
                          const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept override {
    return guarded(node_.kind.name, [&] {
      check_count(count);
      check_shapes(largest(inputs, count));
    });
  }

  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t count,
                          const nvinfer1::DynamicPluginTensorDesc*,
                          int32_t) const noexcept override {
    return node_.workspace(largest(inputs, count).data());
  }

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t count,
                        const nvinfer1::PluginTensorDesc*, int32_t) noexcept override {
    return guarded(node_.kind.name, [&] {
      check_count(count);
      check_shapes({inputs, inputs + count});
    });
  }

  int32_t enqueue(const nvinfer1::PluginTensorDesc* inputs, const nvinfer1::PluginTensorDesc*,
                  const void* const* tensors, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override {
    const int error = node_.run(inputs, tensors, outputs, workspace, stream);
    if (!error) return 0;
    return guarded(node_.kind.name, [&] { refuse("CUDA error %d at the launch", error); });
  }

  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
    return clone();
  }

  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override {
    fields_.clear();
    node_.attributes(FieldWriter{fields_});
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &collection_;
  }

 private:
  static constexpr auto OUTPUTS = static_cast<int32_t>(std::size(Node::LIKE));

  void check_count(int32_t count) const {
    if (count != node_.inputs()) refuse("%d inputs, not %d", node_.inputs(), count);
  }

  void check_shapes(const std::vector<nvinfer1::PluginTensorDesc>& inputs) const {
    std::vector<nvinfer1::Dims> shapes;
    for (const auto& input : inputs) shapes.push_back(input.dims);
    node_.check(shapes.data());
  }

  static nvinfer1::Dims known(const nvinfer1::DimsExprs& shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = shape.nbDims;
    for (int32_t i = 0; i < shape.nbDims; ++i) {
      dims.d[i] = shape.d[i]->isConstant() ? shape.d[i]->getConstantValue() : -1;
    }
    return dims;
  }

  // The inputs in the largest shapes of the profile.
  static std::vector<nvinfer1::PluginTensorDesc> largest(
      const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t count) {
    std::vector<nvinfer1::PluginTensorDesc> found;
    for (int32_t i = 0; i < count; ++i) {
      found.push_back(inputs[i].desc);
      found.back().dims = inputs[i].max;
    }
    return found;
  }

  Node node_;
  std::vector<nvinfer1::PluginField> fields_;  // they point into node_
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace dqx
