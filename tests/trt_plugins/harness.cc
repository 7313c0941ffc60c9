// Takes plugins through their life as TensorRT does, on the host: `harness LIBRARY CASES`. Without
// CASES it lists the operators and their attributes.
//
// Node of a graph, fields of an engine, node of the engine, context, enqueue. Between the two nodes
// nothing is left but the fields. CASES is text, each case from `plugin` to `end`:
//   plugin NAME
//   integer NAME VALUE        an attribute of 32 bits; `long`: of 64; `number`: a float
//   input TYPE FILE SIZES     row-major; "~4": 4, not known before the engine runs
//   output TYPE FILE SIZES    where it is written; it has to have this type and shape
//   in_place INPUTS           of each output the input whose memory it has, -1: its own
//   end
// Prints "log: TEXT" for what is logged and, for each case, "ok" or "refused: BY WHAT".
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>

#include "cases.h"
#include "stand_ins.h"

namespace {

using namespace nvinfer1;
using Bytes = std::vector<char>;
using Plugin = std::unique_ptr<IPluginV3>;

template <class Capability>
Capability& capability(IPluginV3& plugin, PluginCapabilityType type) {
  auto* found = plugin.getCapabilityInterface(type);
  REQUIRE(found);
  return *static_cast<Capability*>(found);
}

Bytes read_file(const Tensor& tensor) {
  std::ifstream file(tensor.file, std::ios::binary);
  Bytes bytes{std::istreambuf_iterator<char>(file), {}};
  REQUIRE(bytes.size() == tensor.bytes());
  return bytes;
}

PluginTensorDesc description(const Tensor& tensor) {
  PluginTensorDesc desc{};
  desc.dims = tensor.dims;
  desc.type = tensor.type;
  desc.format = TensorFormat::kLINEAR;
  return desc;
}

// Inputs and outputs, with the shapes of the call as the largest of the profile.
std::vector<DynamicPluginTensorDesc> range(const Case& test) {
  std::vector<DynamicPluginTensorDesc> tensors;
  std::vector<Tensor> all = test.inputs;
  all.insert(all.end(), test.outputs.begin(), test.outputs.end());
  for (const Tensor& tensor : all) {
    DynamicPluginTensorDesc range{description(tensor), tensor.dims, tensor.dims, tensor.dims};
    for (int axis = 0; axis < tensor.dims.nbDims; ++axis) {
      if (!tensor.variable[axis]) continue;
      range.desc.dims.d[axis] = -1;
      range.min.d[axis] = 0;
    }
    tensors.push_back(range);
  }
  return tensors;
}

Plugin created(IPluginCreatorV3One& creator, std::vector<Attribute> attributes, TensorRTPhase phase) {
  std::vector<PluginField> fields;
  for (Attribute& attribute : attributes) {
    attribute.bytes.insert(0, 1, '\0');  // an engine's fields lie anywhere
    fields.emplace_back(attribute.name.c_str(), attribute.bytes.data() + 1, attribute.type, 1);
  }
  const PluginFieldCollection given{static_cast<int32_t>(fields.size()), fields.data()};
  return Plugin(creator.createPlugin("node", &given, phase));
}

std::vector<Attribute> serialized(IPluginV3& plugin) {
  auto& runtime = capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
  const PluginFieldCollection* fields = runtime.getFieldsToSerialize();
  REQUIRE(fields);
  std::vector<Attribute> kept;
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    const bool wide = field.type == PluginFieldType::kINT64;
    REQUIRE(wide || field.type == PluginFieldType::kINT32 ||
            field.type == PluginFieldType::kFLOAT32);
    const auto* data = static_cast<const char*>(field.data);
    kept.push_back({field.name, field.type, std::string(data, wide ? 8 : 4)});
  }
  return kept;
}

// What is refused when the graph is parsed; null: nothing.
const char* parse(IPluginV3& plugin, const Case& test) {
  auto& build = capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
  const auto count = static_cast<int32_t>(test.inputs.size());
  const auto made = static_cast<int32_t>(test.outputs.size());
  REQUIRE(build.getNbOutputs() == made);
  std::vector<DataType> types;
  std::vector<DimsExprs> shapes;
  std::vector<std::unique_ptr<Size>> sizes;
  for (const Tensor& tensor : test.inputs) {
    types.push_back(tensor.type);
    DimsExprs shape{};
    shape.nbDims = tensor.dims.nbDims;
    for (int axis = 0; axis < shape.nbDims; ++axis) {
      sizes.push_back(std::make_unique<Size>(tensor.dims.d[axis], !tensor.variable[axis]));
      shape.d[axis] = sizes.back().get();
    }
    shapes.push_back(shape);
  }
  std::vector<DataType> out_types(test.outputs.size());
  std::vector<DimsExprs> out_shapes(test.outputs.size());
  if (build.getOutputDataTypes(out_types.data(), made, types.data(), count)) {
    return "getOutputDataTypes";
  }
  SizeBuilder builder;
  if (build.getOutputShapes(shapes.data(), count, nullptr, 0, out_shapes.data(), made, builder)) {
    return "getOutputShapes";
  }
  for (size_t i = 0; i < test.outputs.size(); ++i) {
    const Tensor& wanted = test.outputs[i];
    REQUIRE(out_types[i] == wanted.type);
    REQUIRE(out_shapes[i].nbDims == wanted.dims.nbDims);
    for (int axis = 0; axis < wanted.dims.nbDims; ++axis) {
      const auto* size = static_cast<const Size*>(out_shapes[i].d[axis]);
      REQUIRE(size->inside.value == wanted.dims.d[axis]);
    }
  }
  return nullptr;
}

// What is refused when the engine is built; `room`: bytes that it will have for each call.
const char* build(IPluginV3& plugin, const Case& test, size_t& room) {
  auto& build = capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
  const auto count = static_cast<int32_t>(test.inputs.size());
  std::vector<DynamicPluginTensorDesc> tensors = range(test);
  const auto made = static_cast<int32_t>(test.outputs.size());
  const DynamicPluginTensorDesc* outputs = tensors.data() + count;
  for (int32_t place = 0; place < count + made; ++place) {
    if (!build.supportsFormatCombination(place, tensors.data(), count, made)) {
      return "supportsFormatCombination";
    }
    auto vectors = tensors;
    vectors[static_cast<size_t>(place)].desc.format = TensorFormat::kCHW4;
    REQUIRE(!build.supportsFormatCombination(place, vectors.data(), count, made));
  }
  if (build.configurePlugin(tensors.data(), count, outputs, made)) return "configurePlugin";
  room = build.getWorkspaceSize(tensors.data(), count, outputs, made);
  auto larger = tensors;
  for (int32_t i = 0; i < count; ++i) {
    const auto place = static_cast<size_t>(i);
    for (int axis = 0; axis < Dims::MAX_DIMS; ++axis) {
      larger[place].max.d[axis] += 3 * test.inputs[place].variable[axis];
    }
  }
  REQUIRE(build.getWorkspaceSize(larger.data(), count, outputs, made) >= room);
  const bool aliases = build.getInterfaceInfo().major == 2;
  REQUIRE(aliases || test.in_place.empty());
  for (int32_t output = 0; output < static_cast<int32_t>(test.in_place.size()); ++output) {
    auto& version = static_cast<IPluginV3OneBuildV2&>(build);
    REQUIRE(version.getAliasedInput(output) == test.in_place[static_cast<size_t>(output)]);
  }
  return nullptr;
}

// Runs a context's plugin and writes the outputs; what is refused.
const char* run(IPluginV3& plugin, const Case& test, size_t room) {
  auto& runtime = capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
  const auto count = static_cast<int32_t>(test.inputs.size());
  std::vector<PluginTensorDesc> descs;
  std::vector<Bytes> contents;
  for (const Tensor& tensor : test.inputs) {
    descs.push_back(description(tensor));
    contents.push_back(read_file(tensor));
  }
  const std::vector<Bytes> before = contents;
  std::vector<const void*> pointers;
  for (const Bytes& content : contents) pointers.push_back(content.data());
  std::vector<PluginTensorDesc> out;
  std::vector<Bytes> own;
  std::vector<void*> outputs;
  std::vector<bool> written(contents.size(), false);
  for (const Tensor& tensor : test.outputs) {
    out.push_back(description(tensor));
    own.emplace_back(tensor.bytes(), '\xa5');
  }
  for (size_t i = 0; i < own.size(); ++i) {
    const int input = test.in_place.empty() ? -1 : test.in_place[i];
    outputs.push_back(input < 0 ? own[i].data() : contents[static_cast<size_t>(input)].data());
    if (input >= 0) written[static_cast<size_t>(input)] = true;
  }
  const auto made = static_cast<int32_t>(out.size());
  if (runtime.onShapeChange(descs.data(), count, out.data(), made)) return "onShapeChange";
  Bytes workspace(room, '\xa5');
  if (runtime.enqueue(descs.data(), out.data(), pointers.data(), outputs.data(), workspace.data(),
                      nullptr)) {
    return "enqueue";
  }
  for (size_t i = 0; i < contents.size(); ++i) {
    REQUIRE(written[i] || contents[i] == before[i]);
  }
  for (size_t i = 0; i < own.size(); ++i) {
    std::ofstream(test.outputs[i].file, std::ios::binary)
        .write(static_cast<const char*>(outputs[i]), static_cast<std::streamsize>(own[i].size()));
  }
  return nullptr;
}

// What refuses the case, null: nothing does.
const char* live(IPluginCreatorV3One& creator, const Case& test) {
  Plugin node = created(creator, test.attributes, TensorRTPhase::kBUILD);
  if (!node) return "createPlugin";
  if (const char* refused = parse(*node, test)) return refused;
  Plugin copy(node->clone());
  REQUIRE(copy);
  node.reset();
  size_t room = 0;
  if (const char* refused = build(*copy, test, room)) return refused;
  const std::vector<Attribute> fields = serialized(*copy);
  REQUIRE(fields.size() == static_cast<size_t>(creator.getFieldNames()->nbFields));
  copy.reset();
  Plugin loaded = created(creator, fields, TensorRTPhase::kRUNTIME);
  REQUIRE(loaded);
  auto& runtime = capability<IPluginV3OneRuntime>(*loaded, PluginCapabilityType::kRUNTIME);
  Plugin context(runtime.attachToContext(nullptr));
  REQUIRE(context);
  loaded.reset();
  return run(*context, test, room);
}

std::map<std::string, IPluginCreatorV3One*> creators(void* library) {
  using GetCreators = IPluginCreatorInterface* const*(int32_t&);
  auto* get = reinterpret_cast<GetCreators*>(dlsym(library, "getCreators"));
  REQUIRE(get);
  int32_t count = 0;
  IPluginCreatorInterface* const* all = get(count);
  std::map<std::string, IPluginCreatorV3One*> found;
  for (int32_t i = 0; i < count; ++i) {
    REQUIRE(std::strcmp(all[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0);
    auto* creator = static_cast<IPluginCreatorV3One*>(all[i]);
    REQUIRE(std::strcmp(creator->getPluginNamespace(), "dqexport") == 0);
    REQUIRE(std::strcmp(creator->getPluginVersion(), "1") == 0);
    REQUIRE(found.emplace(creator->getPluginName(), creator).second);
  }
  return found;
}

int list(const std::map<std::string, IPluginCreatorV3One*>& by_name) {
  for (const auto& [name, creator] : by_name) {
    std::printf("%s", name.c_str());
    const PluginFieldCollection* fields = creator->getFieldNames();
    for (int32_t i = 0; i < fields->nbFields; ++i) std::printf(" %s", fields->fields[i].name);
    std::printf("\n");
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) std::fprintf(stderr, "%s\n", dlerror());
  REQUIRE(library);
  using SetLoggerFinder = void(ILoggerFinder*);
  auto* set = reinterpret_cast<SetLoggerFinder*>(dlsym(library, "setLoggerFinder"));
  REQUIRE(set);
  LogFinder finder;
  set(&finder);
  const auto by_name = creators(library);
  if (count == 2) return list(by_name);
  std::ifstream text(arguments[2]);
  for (const Case& test : read_cases(text)) {
    const char* refused = live(*by_name.at(test.plugin), test);
    std::printf(refused ? "refused: %s\n" : "ok\n", refused);
  }
  return 0;
}
