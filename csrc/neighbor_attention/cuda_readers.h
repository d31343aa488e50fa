// Who reads a cell, by which the gradients of neighbour attention are gathered: each has one owner and one order of
// sums, without atomics on floats.
#pragma once

#include "neighbor_attention/cuda_lanes.h"

namespace poh::cuda {

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

// The lists of all mazes of candidates [B, N, C].
struct ReaderLists {
  Tensor starts, entries;
  Readers readers;

  explicit ReaderLists(const Tensor& candidates)
      : starts(empty(candidates, ScalarType::Long, candidates.size(0), candidates.size(1) + 1)),
        entries(empty(candidates, ScalarType::Long, candidates.size(0), candidates.size(1), candidates.size(2))),
        readers{data<int64_t>(starts), data<int64_t>(entries)} {
    const int64_t B = candidates.size(0), N = candidates.size(1), C = candidates.size(2);
    const Tensor counts = zeros(candidates, ScalarType::Int, B, N);
    const int64_t* const cells = data<int64_t>(candidates);
    int* const count = data<int>(counts);
    const Shape all{blocks_for(candidates, B * N * C, kAttentionThreads), kAttentionThreads};
    launch(&count_readers, candidates, all, cells, B, N, C, count);
    const Shape mazes{blocks_for(candidates, B, 1), kAttentionThreads};
    launch(&start_lists, candidates, mazes, B, N, count, readers.starts);
    launch(&fill_lists, candidates, all, cells, B, N, C, count, readers);
    const Shape lists{blocks_for(candidates, B * N, kAttentionThreads), kAttentionThreads};
    launch(&sort_lists, candidates, lists, B, N, C, readers);
  }
};

}  // namespace poh::cuda
