// One row of the multi-horizon cross-entropy, as a warp or a block works on it: which terms read the row, which of its
// logits they need, and the classes allowed at horizon 1.
#pragma once

#include "common/warp.h"
#include "horizon_ce/arguments.h"

namespace poh::cuda {

// One row of logits: that of row r of batch b (-1: none), stored at number `at`, for all horizons (0) or only one.
// Kept small: it stays in registers as long as the row is worked on.
struct Row {
  int64_t at, b, r;
  int only;

  __device__ bool none() const { return b < 0; }
  __device__ int64_t number(const LossTerms& c) const { return b * c.N + r; }
  __device__ int64_t first_horizon() const { return only == 0 ? 1 : only; }
  __device__ int64_t last_horizon(const LossTerms& c) const { return only == 0 ? c.K : only; }
};

// With the logits, of dtype T: those of all rows, or of the rows that are listed.
template <class T, class A>
struct HorizonCall : LossCall<A> {
  const T* logits;      // [count, V]
  const int64_t* read;  // [count]: (b * N + r) * states + state of each, -1: of none; null: each its own number
  int64_t count;
  const int* work = nullptr;  // not null and 0: there is nothing to do

  __device__ A logit(int64_t at, int64_t v) const { return this->cap(static_cast<A>(logits[at * this->V + v])); }
  __device__ Row row(int64_t at) const {
    int64_t q = read == nullptr ? at : read[at];
    if (q < 0) return {at, -1, 0, 0};
    int only = 0;
    if (this->states > 1) {
      only = static_cast<int>(q % this->states) + 1;
      q /= this->states;
    }
    return {at, q / this->N, q % this->N, only};
  }
  __device__ bool idle() const { return work != nullptr && *work == 0; }
};

// f(i) for each position i of batch b that reads row r, ascending; the whole warp goes along.
template <class F>
__device__ void for_each_reader(const LossTerms& c, int64_t b, int64_t r, int lane, const F& f) {
  if (c.rows == nullptr) {
    if (r < c.L) f(r);
    return;
  }
  for (int64_t first = 0; first < c.L; first += kWarp) {
    const int64_t i = first + lane;
    const int64_t read = i < c.L ? c.row_read(b, i) : -1;
    for (unsigned some = __ballot_sync(kAllLanes, read == r); some != 0; some &= some - 1) {
      f(first + __ffs(static_cast<int>(some)) - 1);
    }
  }
}

// f(i, k, y) for each term of the row; lane by lane where the lanes of the warp take a horizon each (y: -1 for none).
template <class F>
__device__ void for_each_term(const LossTerms& c, const Row& row, int lane, bool by_lane, const F& f) {
  for_each_reader(c, row.b, row.r, lane, [&](int64_t i) {
    const int64_t last = row.last_horizon(c);
    for (int64_t k = row.first_horizon(); k <= last; k += by_lane ? kWarp : 1) {
      const int64_t mine = by_lane ? k + lane : k;
      f(i, mine, mine <= last ? c.target(row.b, i, mine) : -1);
    }
  });
}

template <class A>
__device__ OnlineRow<A> from_lane(const OnlineRow<A>& x, int bits, bool exchange) {
  const auto get = [&](auto value) {
    return exchange ? __shfl_xor_sync(kAllLanes, value, bits) : __shfl_sync(kAllLanes, value, 0);
  };
  OnlineRow<A> out;
  out.max = get(x.max);
  out.sum = get(x.sum);
  out.dot = get(x.dot);
  out.mass = get(x.mass);
  out.count = get(x.count);
  out.best = get(x.best);
  return out;
}

// The union of what the threads of the group summed; each gets the same bits.
template <class A>
__device__ OnlineRow<A> merge_group(const Group& g, OnlineRow<A> x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x.merge(from_lane(x, step, true));
  x = from_lane(x, 0, false);  // a.merge(b) and b.merge(a) may differ in the last bit
  if (g.warps == 1) return x;
  POH_SHARED(OnlineRow<A>, of_warp, kWarp);
  if (g.lane == 0) of_warp[g.thread / kWarp] = x;
  __syncthreads();
  x = of_warp[0];
  for (int w = 1; w < g.warps; ++w) x.merge(of_warp[w]);
  __syncthreads();
  return x;
}

// Which of the row's logits are needed, the same for all threads of the group.
struct Need {
  bool near, far;  // some term at horizon 1; at another
};

__device__ inline Need find_need(const LossTerms& c, const Row& row, int lane) {
  if (row.none()) return {false, false};
  bool near = false, far = false;
  for_each_term(c, row, lane, true, [&](int64_t, int64_t k, int64_t y) {
    near |= y >= 0 && k == 1;
    far |= y >= 0 && k > 1;
  });
  return {__any_sync(kAllLanes, near) != 0, __any_sync(kAllLanes, far) != 0};
}

// What term_value() is told of a row as horizon 1 sees it under a mask, from the sums over its allowed classes.
template <class A>
__device__ LogSumExp<A> sums_of_allowed(const OnlineRow<A>& some, Smoothed<A>* set) {
  *set = {static_cast<A>(some.count), some.mass, some.dot};
  return {some.max, some.log_sum()};
}

// f(v) for the classes allowed at horizon 1, shared out among the threads of the group.
template <class F>
__device__ void for_each_allowed(const LossTerms& c, int64_t q, const Group& g, const F& f) {
  if (c.valid != nullptr) {
    for (int64_t v = g.thread; v < c.V; v += g.size()) {
      if (c.valid[q * c.V + v]) f(v);
    }
  } else {
    for (int64_t j = g.thread; j < c.C; j += g.size()) {
      if (c.counts(q, j)) f(c.candidates[q * c.C + j]);
    }
  }
}

// The kernels of cuda.cu, for rows of logits of the dense and the linear form.
//
// Writes the term of every (i, k) that reads one of the rows, and to lse [2, count] what backward() needs: that of all
// horizons, and that of horizon 1 under a mask. correct may be null.
template <class T, class A>
void forward(const Tensor& on, const HorizonCall<T, A>& c, LogSumExp<A>* lse, A* terms, uint8_t* correct);

// Writes all of grad [count, V]: zeros where no term reads the row. It must not overlap the logits.
template <class T, class A>
void backward(const Tensor& on, const HorizonCall<T, A>& c, const LogSumExp<A>* lse, const Upstream<A>& up, T* grad);

}  // namespace poh::cuda
