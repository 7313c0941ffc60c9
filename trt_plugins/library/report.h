// How a plugin says what is wrong: TensorRT takes numbers, its logger takes the text.
#pragma once

#include <NvInferRuntime.h>

#include <stdexcept>
#include <string>

namespace dqx {

// What a node, its tensors or its attributes must not be. Never leaves a plugin: see `guarded`.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws Refused with a text as printf writes it.
[[noreturn]] __attribute__((format(printf, 1, 2))) void refuse(const char* format, ...);

// Logs an error of the operator `name`; to stderr while TensorRT has not said where its logger is.
void report(const char* name, const char* text);

void use_logger_of(nvinfer1::ILoggerFinder* finder);

// "(2, ?, 64)": what is not known yet is -1.
std::string text_of(const nvinfer1::Dims& shape);

const char* name_of(nvinfer1::DataType type);

// 0, or 1 where `body` threw; the reason is logged.
template <class Body>
int32_t guarded(const char* name, const Body& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    report(name, error.what());
    return 1;
  }
}

}  // namespace dqx
