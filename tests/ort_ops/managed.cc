// Arrays of a program in memory that the host and the GPU share.
#include <cuda_runtime.h>

#include <cstdlib>
#include <new>

void* operator new[](std::size_t count) {
  void* made = nullptr;
  if (cudaMallocManaged(&made, count ? count : 1) != cudaSuccess) std::abort();
  return made;
}

void operator delete[](void* made) noexcept { cudaFree(made); }
void operator delete[](void* made, std::size_t) noexcept { cudaFree(made); }
