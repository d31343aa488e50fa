// The kernels of the linear loss.
//
// How many rows are read is not known without waiting for the device. So there is a fixed number of places, an upper
// bound (rows are read once however many positions read them), and a place without a row is filled with zeros, which
// add nothing to any product.
//
// At one horizon with candidates, the logits of a row's candidates alone are formed, and its terms and gradients, in
// one kernel, a warp per row. The gradient to `weight` is then summed class by class. A row that lists no candidate
// allows every class. Such rows are rare, but only the device knows whether there are any: the last three kernels do for
// them what the matrix products do in the form without candidates, and return at once where there are none.
#pragma once

#include "horizon_ce/cuda_terms.h"

namespace poh::cuda {

// read[count]: a place for each position where there are no more of them than rows, else for each row; times the
// states. A row is at the place of the first position that reads it; -1 at all other places.
template <class A>
__global__ void __launch_bounds__(kRowThreads)
    list_rows(LossCall<A> c, bool by_position, int64_t count, int64_t* read) {
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

template <class T, class A>
struct Head {
  const T* hidden;  // [B * N, D]
  const T* weight;  // [V, D]
  const T* bias;    // [V] or null
  int64_t D;

  // The logit of class v from the states of row q; the warp goes along, and each lane gets the same bits.
  __device__ A logit(int64_t q, int64_t v, const Group& warp) const {
    const T* const h = hidden + q * D;
    A sum = 0;
    for_each_class<true, false, T, A>(weight + v * D, nullptr, D, warp, [&](int64_t d, auto& w) {
      for (A x : w) sum += x * static_cast<A>(h[d++]);
    });
    sum = warp_sum(sum);
    return bias == nullptr ? sum : sum + static_cast<A>(bias[v]);
  }
};

// What candidate_rows writes for the kernels after it. For each place and candidate [count, C]: its class (V: none) and
// the gradient to its logit, both null if no gradient is wanted.
template <class A>
struct Entries {
  int32_t* classes;
  A* gradient;
};

// Writes the terms of the rows c.read, to dense[count] those that list no candidate (-1: it does), and to *any whether
// there are any. With entries, also the gradient to the states of the rows.
template <class T, class A>
__global__ void __launch_bounds__(kRowThreads)
    candidate_rows(HorizonCall<T, A> c, Head<T, A> head, Upstream<A> up, A* terms, uint8_t* correct, int64_t* dense,
                   int* any, Entries<A> entries, T* grad_hidden) {
  const Group warp(1);
  for (int64_t place = warp.first_row(); place < c.count; place += warp.row_step()) {
    const Row row = c.row(place);
    const int64_t q = row.number(c);
    OnlineRow<A> some;
    for (int64_t first = 0; first < c.C; first += kWarp) {
      const int64_t j = first + warp.lane;
      const bool counts = !row.none() && j < c.C && c.counts(q, j);
      const int64_t mine = counts ? c.candidates[q * c.C + j] : c.V;
      if (entries.classes != nullptr && j < c.C) entries.classes[place * c.C + j] = static_cast<int32_t>(mine);
      for (unsigned votes = __ballot_sync(kAllLanes, counts); votes != 0; votes &= votes - 1) {
        const int lane = __ffs(static_cast<int>(votes)) - 1;
        const int64_t v = __shfl_sync(kAllLanes, mine, lane);
        const A z = c.cap(head.logit(q, v, warp));
        some.add(z, c.weight(v), v);
        if (entries.classes != nullptr && warp.lane == lane) entries.gradient[place * c.C + j] = z;
      }
    }
    const bool all = !row.none() && some.count == 0;
    if (warp.lane == 0) {
      dense[place] = all ? c.read[place] : -1;
      if (all) atomicOr(any, 1);
    }
    if (some.count == 0) continue;
    Smoothed<A> set;
    const LogSumExp<A> lse = sums_of_allowed(some, &set);
    RowGradient<A> sum;
    for_each_term(c, row, warp.lane, false, [&](int64_t i, int64_t k, int64_t y) {
      if (y < 0) return;
      const bool inside = c.allowed(q, y);
      const A below = inside ? c.cap(head.logit(q, y, warp)) - lse.max : disallowed_below(lse.max);
      if (warp.lane == 0) {
        terms[row.b * c.L + i] = term_value(lse, below, c.weight(y), set, c.options);
        if (correct != nullptr) correct[row.b * c.L + i] = y == some.best;
      }
      if (entries.classes != nullptr) sum.add(up(row.b, i, k), lse, c.weight(y), set.mass, set.count, c.options);
    });
    if (entries.classes == nullptr) continue;
    for (int64_t first = 0; first < c.C; first += kWarp) {
      const int64_t j = first + warp.lane, at = place * c.C + j;
      const int64_t v = j < c.C ? entries.classes[at] : c.V;
      const A z = v < c.V ? entries.gradient[at] : A(0);
      A g = 0;
      if (v < c.V) g = sum.prob * exp_nonpositive(z - lse.max - lse.log_sum) - weighed(sum.spread, c.weight(v));
      for_each_term(c, row, warp.lane, false, [&](int64_t i, int64_t k, int64_t y) {
        if (y < 0 || y != v) return;  // a target that is no candidate has no logit here
        RowGradient<A> one;
        g -= one.add(up(row.b, i, k), lse, c.weight(y), set.mass, set.count, c.options);
      });
      if (j < c.C) entries.gradient[at] = g * c.slope(z);
    }
    __syncwarp();
    for (int64_t d = warp.lane; grad_hidden != nullptr && d < head.D; d += kWarp) {
      A g = 0;
      for (int64_t j = 0; j < c.C; ++j) {
        const int64_t v = entries.classes[place * c.C + j];
        if (v < c.V) g += entries.gradient[place * c.C + j] * static_cast<A>(head.weight[v * head.D + d]);
      }
      grad_hidden[q * head.D + d] = static_cast<T>(g);
    }
  }
}

constexpr int kClassThreads = 128;

// The first place of sorted[n] that is not below v.
__device__ inline int64_t first_of(const int32_t* sorted, int64_t n, int64_t v) {
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (sorted[middle] < v) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// A block per class: grad_weight[v] is the sum over the entries of v, in their order. `sorted` are the classes of the n
// entries in ascending order and `entry` where each stood. grad_weight and grad_bias may be null.
template <class T, class A>
__global__ void __launch_bounds__(kClassThreads)
    sum_entries(Head<T, A> head, const int64_t* read, int64_t V, int64_t C, int64_t n, const int32_t* sorted,
                const int64_t* entry, const A* gradient, A* grad_weight, A* grad_bias) {
  for (int64_t v = blockIdx.x; v < V; v += gridDim.x) {
    const int64_t begin = first_of(sorted, n, v), end = first_of(sorted, n, v + 1);
    for (int64_t d = threadIdx.x; grad_weight != nullptr && d < head.D; d += blockDim.x) {
      A g = 0;
      for (int64_t p = begin; p < end; ++p) {
        g += gradient[entry[p]] * static_cast<A>(head.hidden[read[entry[p] / C] * head.D + d]);
      }
      grad_weight[v * head.D + d] = g;
    }
    if (threadIdx.x != 0 || grad_bias == nullptr) continue;
    A g = 0;
    for (int64_t p = begin; p < end; ++p) g += gradient[entry[p]];
    grad_bias[v] = g;
  }
}

// logits[j] of the rows that list no candidate: a warp per logit.
template <class T, class A>
__global__ void __launch_bounds__(kRowThreads) dense_logits(HorizonCall<T, A> c, Head<T, A> head, T* logits) {
  if (c.idle()) return;
  const Group warp(1);
  for (int64_t at = warp.first_row(); at < c.count * c.V; at += warp.row_step()) {
    const int64_t q = c.read[at / c.V];
    if (q < 0) continue;
    const A z = head.logit(q, at % c.V, warp);
    if (warp.lane == 0) logits[at] = static_cast<T>(z);
  }
}

// From the gradient to these logits that to the states, which is written: a warp per row.
template <class T, class A>
__global__ void __launch_bounds__(kRowThreads)
    dense_states(HorizonCall<T, A> c, Head<T, A> head, const T* gradient, T* grad_hidden) {
  if (c.idle()) return;
  const Group warp(1);
  for (int64_t j = warp.first_row(); j < c.count; j += warp.row_step()) {
    const int64_t q = c.read[j];
    if (q < 0) continue;
    for (int64_t d = warp.lane; d < head.D; d += kWarp) {
      A g = 0;
      for (int64_t v = 0; v < c.V; ++v) {
        g += static_cast<A>(gradient[j * c.V + v]) * static_cast<A>(head.weight[v * head.D + d]);
      }
      grad_hidden[q * head.D + d] = static_cast<T>(g);
    }
  }
}

// And those to weight and bias, which are added to and may be null: a block per class.
template <class T, class A>
__global__ void __launch_bounds__(kClassThreads)
    dense_weights(HorizonCall<T, A> c, Head<T, A> head, const T* gradient, A* grad_weight, A* grad_bias) {
  if (c.idle()) return;
  for (int64_t v = blockIdx.x; v < c.V; v += gridDim.x) {
    for (int64_t d = threadIdx.x; grad_weight != nullptr && d < head.D; d += blockDim.x) {
      A g = 0;
      for (int64_t j = 0; j < c.count; ++j) {
        const int64_t q = c.read[j];
        if (q >= 0) g += static_cast<A>(gradient[j * c.V + v]) * static_cast<A>(head.hidden[q * head.D + d]);
      }
      grad_weight[v * head.D + d] += g;
    }
    if (threadIdx.x != 0 || grad_bias == nullptr) continue;
    A g = 0;
    for (int64_t j = 0; j < c.count; ++j) {
      if (c.read[j] >= 0) g += static_cast<A>(gradient[j * c.V + v]);
    }
    grad_bias[v] += g;
  }
}

}  // namespace poh::cuda
