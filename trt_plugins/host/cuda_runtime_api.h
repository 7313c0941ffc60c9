// What TensorRT's headers need of CUDA, for the build that runs kernels on the host. Pointers to
// streams and events are passed on and never looked into.
#pragma once

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
