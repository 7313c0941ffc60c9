// Attributes of a node as plugin fields: read from what the parser or an engine holds, and written
// into an engine.
//
// A parser converts an attribute to the type that the creator names for it, so 32 bits are all that
// comes. A node shows its attributes to a visitor, `visit("group", group)`, integers as int32_t, numbers as
// float. So there is one list of them, whatever is done with it.
#pragma once

#include <cstring>
#include <vector>

#include "report.h"

namespace dqx {

// Lists fields that point to a node's attributes.
struct FieldWriter {
  std::vector<nvinfer1::PluginField>& fields;

  void operator()(const char* name, const int32_t& value) const {
    fields.emplace_back(name, &value, nvinfer1::PluginFieldType::kINT32, 1);
  }
  void operator()(const char* name, const float& value) const {
    fields.emplace_back(name, &value, nvinfer1::PluginFieldType::kFLOAT32, 1);
  }
};

// Sets a node's attributes to those of `given`; all have to be there. Refuses what does not fit.
struct FieldReader {
  const nvinfer1::PluginFieldCollection* given;

  void operator()(const char* name, int32_t& value) const {
    copy(name, nvinfer1::PluginFieldType::kINT32, "an integer", value);
  }

  void operator()(const char* name, float& value) const {
    copy(name, nvinfer1::PluginFieldType::kFLOAT32, "a float", value);
  }

 private:
  const nvinfer1::PluginField& find(const char* name) const {
    for (int32_t i = 0; given && i < given->nbFields; ++i) {
      const nvinfer1::PluginField& field = given->fields[i];
      if (field.name && std::strcmp(field.name, name) == 0) {
        return field;
      }
    }
    refuse("the attribute %s is missing", name);
  }

  template <class T>
  void copy(const char* name, nvinfer1::PluginFieldType type, const char* what, T& value) const {
    const nvinfer1::PluginField& field = find(name);
    if (field.type != type || field.length != 1 || !field.data) {
      refuse("the attribute %s has to be %s of 32 bits", name, what);
    }
    std::memcpy(&value, field.data, sizeof value);  // fields of an engine need not be aligned
  }
};

}  // namespace dqx
