// Marks the mathematics shared by the CPU loops and the CUDA kernels.
#pragma once

#if defined(__CUDACC__)
#define POH_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// Always: a SIMD loop over a call that the compiler leaves a call is a scalar loop.
#define POH_HOST_DEVICE [[gnu::always_inline]] inline
#else
#define POH_HOST_DEVICE inline
#endif
