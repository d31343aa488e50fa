// What the CUDA kernels of neighbour attention read, and the lists of who reads a cell, by which its gradients are
// gathered: each has one owner and one order of sums, without atomics on floats.
#pragma once

#include <algorithm>

#include "cuda/tensors.h"
#include "cuda/warp.h"
#include "math/neighbor_attention.h"

namespace poh::cuda {

constexpr int kAttentionThreads = 256;

// A [B, H, N, Dh] tensor by its strides.
template <class T>
struct Strided {
  const T* at;
  int64_t batch, head, cell, inner;
  __device__ const T* row(int64_t b, int64_t h, int64_t i) const { return at + b * batch + h * head + i * cell; }
};

// A table in T or in A, or none: zeros.
template <class T, class A>
struct Table {
  const void* at;
  bool narrow;
  __device__ A operator[](int64_t i) const {
    if (at == nullptr) return A(0);
    return narrow ? static_cast<A>(static_cast<const T*>(at)[i]) : static_cast<const A*>(at)[i];
  }
};

template <class T, class A>
struct AttentionCall {
  int64_t B, H, N, D, C;
  Strided<T> q, k, v;
  const int64_t* candidates;
  Table<T, A> bias, key_offset, value_offset;
  A scale;
  int lanes;  // of each cell: a power of two

  __device__ int64_t slots() const { return C + 1; }
  // The cell of a slot, -1 where there is none.
  __device__ int64_t target(int64_t b, int64_t i, int64_t s) const {
    if (s == 0) return i;
    const int64_t j = candidates[(b * N + i) * C + s - 1];
    POH_DEVICE_CHECK(j >= -1 && j < N, "candidates: a cell is out of range");
    return j;
  }
};

// The items (b, h, i) of a grid, a group of lanes each. Every lane of a warp goes through the same number of rounds, for
// all of them take part in shuffles; past the end a group works on the last item and writes nothing.
struct Items {
  int lanes, lane;
  int64_t total, first, step;

  __device__ Items(int lanes_, int64_t total_) : lanes(lanes_), lane(static_cast<int>(threadIdx.x) % lanes_), total(total_) {
    const int per_warp = kWarp / lanes;
    first = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) / kWarp * per_warp;
    step = gridDim.x * static_cast<int64_t>(blockDim.x / kWarp) * per_warp;
  }
  __device__ int64_t item(int64_t base) const { return base + static_cast<int>(threadIdx.x) % kWarp / lanes; }
};

// The value of the lane that owns slot s (s % lanes).
template <class A>
__device__ A from_owner(A mine, int64_t s, int lanes) {
  return __shfl_sync(kAllLanes, mine, static_cast<int>(s % lanes), lanes);
}

// Who reads a cell: entries[starts[b, j] ... starts[b, j + 1]) are the i * C + c whose candidate is j, ascending.
struct Readers {
  int64_t* starts;   // [B, N + 1], within the maze
  int64_t* entries;  // [B, N * C]
};

__global__ void __launch_bounds__(kAttentionThreads)
    count_readers(const int64_t* candidates, int64_t B, int64_t N, int64_t C, int* counts) {
  const int64_t step = gridDim.x * static_cast<int64_t>(blockDim.x), total = B * N * C;
  for (int64_t e = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; e < total; e += step) {
    const int64_t j = candidates[e];
    POH_DEVICE_CHECK(j >= -1 && j < N, "candidates: a cell is out of range");
    if (j >= 0) atomicAdd(&counts[e / (N * C) * N + j], 1);
  }
}

// One block for each maze: counts -> where each list starts; counts become 0 again.
__global__ void __launch_bounds__(kAttentionThreads) start_lists(int64_t B, int64_t N, int* counts, int64_t* starts) {
  POH_SHARED(int64_t, before, kAttentionThreads + 1);
  const int64_t piece = (N + blockDim.x - 1) / blockDim.x;
  for (int64_t b = blockIdx.x; b < B; b += gridDim.x) {
    const int64_t first = threadIdx.x * piece, last = first + piece < N ? first + piece : N;
    int64_t sum = 0;
    for (int64_t j = first; j < last; ++j) sum += counts[b * N + j];
    before[threadIdx.x + 1] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      before[0] = 0;
      for (unsigned t = 0; t < blockDim.x; ++t) before[t + 1] += before[t];
      starts[b * (N + 1) + N] = before[blockDim.x];
    }
    __syncthreads();
    int64_t at = before[threadIdx.x];
    for (int64_t j = first; j < last; ++j) {
      starts[b * (N + 1) + j] = at;
      at += counts[b * N + j];
      counts[b * N + j] = 0;
    }
    __syncthreads();  // `before` is used again
  }
}

// In any order; sort_lists puts them in one.
__global__ void __launch_bounds__(kAttentionThreads)
    fill_lists(const int64_t* candidates, int64_t B, int64_t N, int64_t C, int* counts, Readers readers) {
  const int64_t step = gridDim.x * static_cast<int64_t>(blockDim.x), total = B * N * C;
  for (int64_t e = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; e < total; e += step) {
    const int64_t b = e / (N * C), j = candidates[e];
    if (j < 0) continue;
    const int place = atomicAdd(&counts[b * N + j], 1);
    readers.entries[b * N * C + readers.starts[b * (N + 1) + j] + place] = e - b * N * C;
  }
}

// A thread for each list, by heapsort: lists are short, but one cell may be everybody's candidate.
__global__ void __launch_bounds__(kAttentionThreads) sort_lists(int64_t B, int64_t N, int64_t C, Readers readers) {
  const int64_t step = gridDim.x * static_cast<int64_t>(blockDim.x);
  for (int64_t t = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; t < B * N; t += step) {
    const int64_t b = t / N, j = t % N, first = readers.starts[b * (N + 1) + j];
    int64_t* const list = readers.entries + b * N * C + first;
    int64_t size = readers.starts[b * (N + 1) + j + 1] - first;
    for (int64_t root = size / 2; size > 1;) {
      int64_t value;
      if (root > 0) {
        value = list[--root];
      } else {
        value = list[--size];
        list[size] = list[0];
      }
      int64_t hole = root;
      for (int64_t child = 2 * hole + 1; child < size; child = 2 * hole + 1) {
        if (child + 1 < size && list[child + 1] > list[child]) ++child;
        if (list[child] <= value) break;
        list[hole] = list[child];
        hole = child;
      }
      list[hole] = value;
    }
  }
}

}  // namespace poh::cuda
