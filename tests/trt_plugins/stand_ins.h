// What TensorRT hands to a plugin, on the host: a logger, and sizes that may not be known yet.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <vector>

#include "require.h"

// Prints errors, and nothing else is to be logged.
struct Log : nvinfer1::ILogger {
  void log(Severity severity, const char* text) noexcept override {
    REQUIRE(severity == Severity::kERROR);
    std::printf("log: %s\n", text);
  }
};

struct LogFinder : nvinfer1::ILoggerFinder {
  nvinfer1::ILogger* findLogger() override { return &log; }
  Log log;
};

// A size, which `value` tells to the harness alone where it is not constant.
struct Size : nvinfer1::IDimensionExpr {
  struct Inside : nvinfer1::apiv::VDimensionExpr {
    bool isConstant() const override { return constant; }
    int64_t getConstantValue() const override {
      REQUIRE(constant);
      return value;
    }
    bool isSizeTensor() const override { return false; }
    bool constant = true;
    int64_t value = 0;
  };
  Size(int64_t value, bool constant) {
    inside.value = value;
    inside.constant = constant;
    mImpl = &inside;
  }
  Inside inside;
};

// Makes constants; no operator of ours computes with sizes.
struct SizeBuilder : nvinfer1::IExprBuilder {
  using Expr = nvinfer1::IDimensionExpr;
  struct Inside : nvinfer1::apiv::VExprBuilder {
    const Expr* constant(int64_t value) override {
      made.push_back(std::make_unique<Size>(value, true));
      return made.back().get();
    }
    const Expr* operation(nvinfer1::DimensionOperation, const Expr&, const Expr&) override {
      REQUIRE(false);
    }
    const Expr* declareSizeTensor(int32_t, const Expr&, const Expr&) override { REQUIRE(false); }
    std::vector<std::unique_ptr<Size>> made;
  };
  SizeBuilder() { mImpl = &inside; }
  Inside inside;
};
