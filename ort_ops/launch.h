// What launchers of CUDA kernels have in common. They know neither ONNX Runtime nor TensorRT.
//
// A launcher returns 0, or the error of the CUDA runtime that kept its kernels from starting. It
// allocates nothing, waits for nothing, and may be captured into a CUDA graph. All pointers are of
// the device; on_cpu.h makes the same launchers run on the host.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dqx {

enum class Float : int32_t { fp32, fp16, bf16 };

using Stream = void*;  // a cudaStream_t

}  // namespace dqx
