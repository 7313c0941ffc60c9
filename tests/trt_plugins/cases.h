// The cases of the harness, read from text: see harness.cc.
#pragma once

#include <NvInferRuntime.h>

#include <istream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "require.h"

struct Tensor {
  nvinfer1::DataType type{};
  std::string file;
  nvinfer1::Dims dims{};
  bool variable[nvinfer1::Dims::MAX_DIMS] = {};

  size_t bytes() const {
    size_t count = 1;
    for (int axis = 0; axis < dims.nbDims; ++axis) count *= static_cast<size_t>(dims.d[axis]);
    switch (type) {
      case nvinfer1::DataType::kINT4: return (count + 1) / 2;
      case nvinfer1::DataType::kINT8:
      case nvinfer1::DataType::kBOOL: return count;
      case nvinfer1::DataType::kHALF:
      case nvinfer1::DataType::kBF16: return count * 2;
      case nvinfer1::DataType::kINT64: return count * 8;
      default: return count * 4;
    }
  }
};

struct Attribute {
  std::string name;
  nvinfer1::PluginFieldType type{};
  std::string bytes;
};

struct Case {
  std::string plugin;
  std::vector<Attribute> attributes;
  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;
  std::vector<int> in_place;  // of each output an input whose memory it has, -1: none
};

inline Tensor read_tensor(std::istream& line) {
  static const std::map<std::string, nvinfer1::DataType> types = {
      {"fp32", nvinfer1::DataType::kFLOAT}, {"fp16", nvinfer1::DataType::kHALF},
      {"int4", nvinfer1::DataType::kINT4},  {"int8", nvinfer1::DataType::kINT8},
      {"bf16", nvinfer1::DataType::kBF16},  {"int32", nvinfer1::DataType::kINT32},
      {"int64", nvinfer1::DataType::kINT64}, {"bool", nvinfer1::DataType::kBOOL}};
  Tensor tensor;
  std::string type, size;
  line >> type >> tensor.file;
  tensor.type = types.at(type);
  while (line >> size) {
    const int axis = tensor.dims.nbDims++;
    REQUIRE(axis < nvinfer1::Dims::MAX_DIMS);
    tensor.variable[axis] = size[0] == '~';
    tensor.dims.d[axis] = std::stoll(size.substr(tensor.variable[axis]));
  }
  return tensor;
}

template <class T>
Attribute attribute_of(const std::string& name, nvinfer1::PluginFieldType type, T value) {
  return {name, type, std::string(reinterpret_cast<const char*>(&value), sizeof value)};
}

inline Attribute read_attribute(const std::string& kind, std::istream& line) {
  std::string name, value;
  line >> name >> value;
  if (kind == "number") {
    return attribute_of(name, nvinfer1::PluginFieldType::kFLOAT32, std::stof(value));
  }
  const long long integer = std::stoll(value);
  if (kind == "long") {
    return attribute_of<int64_t>(name, nvinfer1::PluginFieldType::kINT64, integer);
  }
  return attribute_of(name, nvinfer1::PluginFieldType::kINT32, static_cast<int32_t>(integer));
}

inline std::vector<Case> read_cases(std::istream& text) {
  std::vector<Case> cases;
  Case next;
  for (std::string row; std::getline(text, row);) {
    std::istringstream line(row);
    std::string word;
    line >> word;
    if (word == "plugin") {
      line >> next.plugin;
    } else if (word == "input") {
      next.inputs.push_back(read_tensor(line));
    } else if (word == "output") {
      next.outputs.push_back(read_tensor(line));
    } else if (word == "in_place") {
      for (int input = 0; line >> input;) next.in_place.push_back(input);
    } else if (word == "end") {
      cases.push_back(next);
      next = Case();
    } else {
      next.attributes.push_back(read_attribute(word, line));
    }
  }
  return cases;
}
