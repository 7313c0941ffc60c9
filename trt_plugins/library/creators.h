// Who makes plugins of which operator.
#pragma once

#include <deque>
#include <vector>

#include "plugin.h"

namespace dqx {

using Creators = std::vector<nvinfer1::IPluginCreatorInterface*>;

// Makes the plugins of one operator, for nodes of a graph and for layers of an engine alike.
template <class Node>
class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const typename Node::Kind& kind) : node_{kind} {
    node_.attributes(FieldWriter{fields_});
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  }

  nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase) noexcept override {
    nvinfer1::IPluginV3* made = nullptr;
    guarded(node_.kind.name, [&] {
      Node node = node_;
      node.attributes(FieldReader{fields});
      node.check_attributes();
      made = new Plugin<Node>(node);
    });
    return made;
  }

  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return node_.kind.name; }
  const char* getPluginVersion() const noexcept override { return VERSION; }
  const char* getPluginNamespace() const noexcept override { return NAMESPACE; }

 private:
  Node node_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

// Adds one creator for each kind of a Node. They stay where they are to the end of the process:
// the registry keeps pointers and may look at them when the process ends.
template <class Node, size_t count>
void add_creators(Creators& all, const typename Node::Kind (&kinds)[count]) {
  static auto& kept = *new std::deque<Creator<Node>>;
  for (const auto& kind : kinds) all.push_back(&kept.emplace_back(kind));
}

void add_linear(Creators& all);
void add_attention(Creators& all);
void add_kv_update(Creators& all);
void add_cached_attention(Creators& all);

}  // namespace dqx
