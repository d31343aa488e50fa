// Which rows the linear loss reads, and their hidden states gathered and scattered.
//
// How many rows are read is not known without waiting for the device. So there is a fixed number of places, an upper
// bound (rows are read once however many positions read them), and a place without a row is filled with zeros, which
// add nothing to any product.
#pragma once

#include "horizon_ce/cuda_terms.h"

namespace poh::cuda {

// read[count]: a place for each position where there are no more of them than rows, else for each row; times the
// states. A row is at the place of the first position that reads it; -1 at all other places.
template <class A>
__global__ void __launch_bounds__(kRowThreads) list_rows(Asked<A> c, bool by_position, int64_t count, int64_t* read) {
  const Group g(1);
  const int64_t places = by_position ? c.L : c.N;
  for (int64_t at = g.first_row(); at < count; at += g.row_step()) {
    const int64_t state = at % c.states, place = at / c.states % places, b = at / c.states / places;
    const int64_t r = by_position ? c.row_read(b, place) : place;
    bool mine = r >= 0;
    if (mine && by_position) {
      for_each_reader(c, b, r, g.lane, [&](int64_t i) { mine &= i >= place; });
    }
    if (mine) {
      const Need need = find_need(c, Row{at, b, r, c.states > 1 ? static_cast<int>(state) + 1 : 0}, g.lane);
      mine = need.near || need.far;
    }
    if (g.lane == 0) read[at] = mine ? (b * c.N + r) * c.states + state : -1;
  }
}

// out[j] = hidden[read[j]], zeros where that is -1. T is converted to A and back, which changes nothing.
template <class T, class A>
__global__ void __launch_bounds__(kRowThreads)
    gather_states(const T* hidden, const int64_t* read, int64_t count, int64_t D, T* out) {
  const Group g(1);
  for (int64_t j = g.first_row(); j < count; j += g.row_step()) {
    if (read[j] >= 0) {
      for_each_class<true, true, T, A>(hidden + read[j] * D, out + j * D, D, g, [](int64_t, auto&) {});
    } else {
      for_each_class<false, true, T, A>(nullptr, out + j * D, D, g, [](int64_t, auto&) {});
    }
  }
}

// out[read[j]] = part[j]; no row is at two places.
template <class T, class A>
__global__ void __launch_bounds__(kRowThreads)
    scatter_states(const T* part, const int64_t* read, int64_t count, int64_t D, T* out) {
  const Group g(1);
  for (int64_t j = g.first_row(); j < count; j += g.row_step()) {
    if (read[j] < 0) continue;
    for_each_class<true, true, T, A>(part + j * D, out + read[j] * D, D, g, [](int64_t, auto&) {});
  }
}

// sum += part
template <class T, class A>
__global__ void __launch_bounds__(kRowThreads) accumulate(A* sum, const T* part, int64_t n) {
  const int64_t step = gridDim.x * static_cast<int64_t>(blockDim.x);
  for (int64_t j = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; j < n; j += step) {
    sum[j] += static_cast<A>(part[j]);
  }
}

}  // namespace poh::cuda
