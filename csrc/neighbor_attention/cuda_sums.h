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

// The gradients to the tables (bias and offsets): sums over the cells of all mazes.

constexpr int64_t kChunk = 512;  // cells summed by one block: fixed, so that sums do not depend on the device

// Sums over the cells of one chunk, for one head and slot: parts[chunk, H, slots, 2 D + 1] of key offset, value offset
// and bias. Groups of lanes take the cells in turn, and are added in their order.
template <class T, class A>
__global__ void __launch_bounds__(kAttentionThreads)
    sum_chunks(AttentionCall<T, A> c, Strided<T> g, const A* weights, const A* gradients, int64_t chunks, A* parts) {
  POH_DYNAMIC_SHARED(A, of_group);  // [groups, 3, lanes]
  const int lane = static_cast<int>(threadIdx.x) % c.lanes, group = static_cast<int>(threadIdx.x) / c.lanes;
  const int groups = static_cast<int>(blockDim.x) / c.lanes;
  const int64_t cells = c.B * c.N, width = 2 * c.D + 1;
  for (int64_t job = blockIdx.x; job < chunks * c.H * c.slots(); job += gridDim.x) {
    const int64_t chunk = job / (c.H * c.slots()), h = job / c.slots() % c.H, s = job % c.slots();
    const int64_t last = (chunk + 1) * kChunk < cells ? (chunk + 1) * kChunk : cells;
    for (int64_t first = 0; first < c.D; first += c.lanes) {
      const int64_t d = first + lane;
      A of_key = 0, of_value = 0, of_bias = 0;
      for (int64_t r = chunk * kChunk + group; r < last; r += groups) {
        const int64_t b = r / c.N, i = r % c.N, at = ((b * c.H + h) * c.slots() + s) * c.N + i;
        of_bias += gradients[at];
        if (d >= c.D) continue;
        of_key += gradients[at] * static_cast<A>(c.q.row(b, h, i)[d * c.q.inner]);
        of_value += weights[at] * static_cast<A>(g.row(b, h, i)[d * g.inner]);
      }
      A* const mine = of_group + group * 3 * c.lanes + lane;
      mine[0] = of_key;
      mine[c.lanes] = of_value;
      mine[2 * c.lanes] = of_bias;
      __syncthreads();
      if (group == 0) {
        A sums[3] = {0, 0, 0};
        for (int other = 0; other < groups; ++other) {
          for (int n = 0; n < 3; ++n) sums[n] += of_group[(other * 3 + n) * c.lanes + lane];
        }
        A* const to = parts + job * width;
        if (d < c.D) {
          to[d] = sums[0] * c.scale;
          to[c.D + d] = sums[1];
        }
        if (d == 0) to[2 * c.D] = sums[2];
      }
      __syncthreads();
    }
  }
}

// parts summed over the chunks, in order and in double.
template <class A>
__global__ void __launch_bounds__(kAttentionThreads)
    finish_tables(const A* parts, int64_t chunks, int64_t rows, int64_t D, A* bias, A* key_offset, A* value_offset) {
  const int64_t width = 2 * D + 1, step = gridDim.x * static_cast<int64_t>(blockDim.x);
  for (int64_t t = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; t < rows * width; t += step) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += parts[chunk * rows * width + t];
    const int64_t row = t / width, column = t % width;
    if (column == 2 * D) {
      if (bias != nullptr) bias[row] = static_cast<A>(sum);
    } else if (column < D) {
      if (key_offset != nullptr) key_offset[row * D + column] = static_cast<A>(sum);
    } else if (value_offset != nullptr) {
      value_offset[row * D + column - D] = static_cast<A>(sum);
    }
  }
}

}  // namespace poh::cuda
