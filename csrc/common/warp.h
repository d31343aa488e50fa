// Sums and maxima over the lanes of a warp or the threads of a block, in an order that never varies; and how the
// threads that share a row of numbers take its elements.
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

constexpr int kRowThreads = 256;

// The threads that share a row: a warp, or all warps of the block.
struct Group {
  int warps;
  int lane;    // of the warp
  int thread;  // of the group

  __device__ explicit Group(int warps_)
      : warps(warps_), lane(threadIdx.x % kWarp), thread(warps_ == 1 ? lane : static_cast<int>(threadIdx.x)) {}
  __device__ int size() const { return warps * kWarp; }
  __device__ bool first_warp() const { return thread < kWarp; }
  __device__ int64_t first_row() const {
    return warps > 1 ? blockIdx.x : blockIdx.x * static_cast<int64_t>(blockDim.x / kWarp) + threadIdx.x / kWarp;
  }
  __device__ int64_t row_step() const {
    return warps > 1 ? gridDim.x : gridDim.x * static_cast<int64_t>(blockDim.x / kWarp);
  }
  __device__ void sync() const {
    if (warps > 1) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }
};

// f(v, x) visits each class of the row once, ascending for a thread: x holds n neighbouring numbers from class v on, of
// type A (&)[n]. With Read they are those of z, with Write they become those of out. 16 bytes at a time, with the next
// in flight, where z (and out, if any) allow it.
template <bool Read, bool Write, class T, class A, class F>
__device__ void for_each_class(const T* z, T* out, int64_t V, const Group& g, const F& f) {
  constexpr int kPack = 16 / sizeof(T);
  const uintptr_t address = reinterpret_cast<uintptr_t>(Read ? z : out);
  int64_t head = static_cast<int64_t>((16 - address % 16) % 16 / sizeof(T));
  if (Read && Write && (address - reinterpret_cast<uintptr_t>(out)) % 16 != 0) head = V;
  head = head < V ? head : V;
  const auto one = [&](int64_t v) {
    A x[1] = {Read ? static_cast<A>(z[v]) : A(0)};
    f(v, x);
    if constexpr (Write) out[v] = static_cast<T>(x[0]);
  };
  for (int64_t v = g.thread; v < head; v += g.size()) one(v);
  const int64_t packs = (V - head) / kPack;
  const auto load = [&](int64_t p) {
    return Read && p < packs ? *reinterpret_cast<const uint4*>(z + head + p * kPack) : uint4{0, 0, 0, 0};
  };
  uint4 bits = load(g.thread);
  for (int64_t p = g.thread; p < packs; p += g.size()) {
    const uint4 next = load(p + g.size());
    const int64_t first = head + p * kPack;
    T values[kPack];
    memcpy(static_cast<void*>(values), &bits, sizeof(bits));
    A x[kPack];
#pragma unroll
    for (int j = 0; j < kPack; ++j) x[j] = Read ? static_cast<A>(values[j]) : A(0);
    f(first, x);
    if constexpr (Write) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) values[j] = static_cast<T>(x[j]);
      memcpy(&bits, static_cast<const void*>(values), sizeof(bits));
      *reinterpret_cast<uint4*>(out + first) = bits;
    }
    bits = next;
  }
  for (int64_t v = head + packs * kPack + g.thread; v < V; v += g.size()) one(v);
}

}  // namespace poh::cuda
