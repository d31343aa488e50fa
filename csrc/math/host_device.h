// Marks the mathematics shared by the CPU loops and the CUDA kernels.
#pragma once

#if defined(__CUDACC__)
#define POH_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define POH_HOST_DEVICE inline
#endif
