// Sums and maxima over the lanes of a warp or the threads of a block, in an order that never varies.
#pragma once

#include "common/device.h"

namespace poh::cuda {

// Over groups of `lanes` neighbouring lanes (a power of two); every lane gets the result. All lanes must take part.
template <class A>
__device__ A warp_sum(A x, int lanes = kWarp) {
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// NaN are passed over.
template <class A>
__device__ A warp_max(A x, int lanes = kWarp) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(kAllLanes, x, step);
    x = other > x ? other : x;
  }
  return x;
}

// The sum of x over the block (at most 1024 threads), for thread 0.
__device__ inline double block_sum(double x) {
  POH_SHARED(double, of_warp, kWarp);
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = x;
  __syncthreads();
  if (threadIdx.x < kWarp) x = warp_sum(threadIdx.x < blockDim.x / kWarp ? of_warp[threadIdx.x] : 0.0);
  __syncthreads();  // of_warp may be used again
  return x;
}

}  // namespace poh::cuda
