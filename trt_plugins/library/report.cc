#include "report.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace dqx {
namespace {

// One library has one logger: TensorRT hands it over once, when the library is loaded.
std::atomic<nvinfer1::ILoggerFinder*>& logger_finder() {
  static std::atomic<nvinfer1::ILoggerFinder*> finder{nullptr};
  return finder;
}

}  // namespace

void refuse(const char* format, ...) {
  char text[400];
  va_list values;
  va_start(values, format);
  std::vsnprintf(text, sizeof text, format, values);
  va_end(values);
  throw Refused(text);
}

void report(const char* name, const char* text) {
  char line[500];
  std::snprintf(line, sizeof line, "%s: %s", name, text);
  nvinfer1::ILoggerFinder* finder = logger_finder();
  nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr;
  if (logger) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, line);
  } else {
    std::fprintf(stderr, "%s\n", line);
  }
}

void use_logger_of(nvinfer1::ILoggerFinder* finder) { logger_finder() = finder; }

std::string text_of(const nvinfer1::Dims& shape) {
  std::string text = "(";
  for (int axis = 0; axis < shape.nbDims; ++axis) {
    if (axis) text += ", ";
    text += shape.d[axis] < 0 ? "?" : std::to_string(shape.d[axis]);
  }
  return text + ")";
}

const char* name_of(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT: return "fp32";
    case nvinfer1::DataType::kHALF: return "fp16";
    case nvinfer1::DataType::kBF16: return "bf16";
    case nvinfer1::DataType::kINT4: return "int4";
    case nvinfer1::DataType::kINT8: return "int8";
    case nvinfer1::DataType::kINT32: return "int32";
    case nvinfer1::DataType::kINT64: return "int64";
    case nvinfer1::DataType::kBOOL: return "bool";
    default: return "a type that no operator takes";
  }
}

}  // namespace dqx
