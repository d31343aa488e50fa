// The gradients of neighbour attention to its tables (bias and offsets): sums over the cells of all mazes.
#pragma once

#include "neighbor_attention/cuda_lanes.h"

namespace poh::cuda {

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
