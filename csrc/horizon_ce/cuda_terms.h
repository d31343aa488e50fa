// One row of the multi-horizon cross-entropy, as a warp or a block works on it: which terms read the row, which of its
// logits they need, and the classes allowed at horizon 1.
#pragma once

#include "horizon_ce/cuda_group.h"
#include "common/cuda_tensors.h"
#include "horizon_ce/math.h"

namespace poh::cuda {

// One row of logits: that of row r of batch b (-1: none), stored at number `at`, for all horizons (0) or only one.
// Kept small: it stays in registers as long as the row is worked on.
struct Row {
  int64_t at, b, r;
  int only;

  __device__ bool none() const { return b < 0; }
};

// The arguments of a call but the logits. A is the dtype of all arithmetic.
template <class A>
struct Asked {
  int64_t B, N, V, L, K, C;
  int64_t states;             // rows of logits for each row: 1, or K when every horizon has its own
  const int64_t* targets;     // [B, L]
  const int64_t* rows;        // [B, L], or null: position i reads row i
  const bool* valid;          // [B, N, V] or null
  const int64_t* candidates;  // [B, N, C] or null
  const A* class_weight;      // [V] or null
  const A* total_mass;        // their sum, where they are
  int64_t ignore;
  TermOptions<A> options;
  A softcap;  // 0: none

  __device__ int64_t number(const Row& row) const { return row.b * N + row.r; }
  __device__ int64_t first_horizon(const Row& row) const { return row.only == 0 ? 1 : row.only; }
  __device__ int64_t last_horizon(const Row& row) const { return row.only == 0 ? K : row.only; }
  __device__ bool has_mask() const { return valid != nullptr || candidates != nullptr; }
  __device__ A weight(int64_t v) const { return class_weight == nullptr ? A(1) : class_weight[v]; }
  __device__ A mass() const { return class_weight == nullptr ? static_cast<A>(V) : *total_mass; }
  __device__ A cap(A z) const { return softcap == 0 ? z : softcap * fast_tanh(z / softcap); }
  template <int kCount>
  __device__ void cap_all(A (&z)[kCount]) const {
    if (softcap == 0) return;
    for (int j = 0; j < kCount; ++j) z[j] = cap(z[j]);
  }
  // d cap(z) / d z, from cap(z).
  __device__ A slope(A z) const { return softcap == 0 ? A(1) : 1 - (z / softcap) * (z / softcap); }

  // The class position i of batch b is asked for at horizon k <= K; -1: no term.
  __device__ int64_t target(int64_t b, int64_t i, int64_t k) const {
    if (i + k >= L) return -1;
    const int64_t y = targets[b * L + i + k];
    if (y == ignore) return -1;
    POH_DEVICE_CHECK(y >= 0 && y < V, "targets: a class is out of range");
    return y;
  }
  // The row that position i of batch b reads; -1: none.
  __device__ int64_t row_read(int64_t b, int64_t i) const {
    if (rows == nullptr) return i;
    const int64_t r = rows[b * L + i];
    if (skips_row(r, ignore)) return -1;
    POH_DEVICE_CHECK(r >= 0 && r < N, "rows: a row is out of range");
    return r;
  }
  __device__ int64_t candidate(int64_t q, int64_t j) const {
    const int64_t v = candidates[q * C + j];
    POH_DEVICE_CHECK(v >= -1 && v < V, "candidates: a class is out of range");
    return v;
  }
  // Whether candidate j of row q = b * N + r is not a padding and the first of its kind.
  __device__ bool counts(int64_t q, int64_t j) const {
    const int64_t v = candidate(q, j);
    for (int64_t i = 0; i < j; ++i) {
      if (candidates[q * C + i] == v) return false;
    }
    return v >= 0;
  }
  __device__ bool allowed(int64_t q, int64_t v) const {
    if (valid != nullptr) return valid[q * V + v];
    for (int64_t j = 0; j < C; ++j) {
      if (candidates[q * C + j] == v) return true;
    }
    return false;
  }
};

// With the logits, of dtype T: those of all rows, or of the rows that are listed.
template <class T, class A>
struct HorizonCall : Asked<A> {
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

// d loss / d term: coefficients [L, K] times the gradient of the value: 1 (null), one number or [B, L, K].
template <class A>
struct Upstream {
  const A* coefficients;
  const A* grad;
  bool per_term;

  __device__ A operator()(const Asked<A>& c, int64_t b, int64_t i, int64_t k) const {
    const int64_t place = i * c.K + k - 1;
    if (grad == nullptr) return coefficients[place];
    return coefficients[place] * grad[per_term ? b * c.L * c.K + place : 0];
  }
};

// f(i) for each position i of batch b that reads row r, ascending; the whole warp goes along.
template <class A, class F>
__device__ void for_each_reader(const Asked<A>& c, int64_t b, int64_t r, int lane, const F& f) {
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
template <class A, class F>
__device__ void for_each_term(const Asked<A>& c, const Row& row, int lane, bool by_lane, const F& f) {
  for_each_reader(c, row.b, row.r, lane, [&](int64_t i) {
    const int64_t last = c.last_horizon(row);
    for (int64_t k = c.first_horizon(row); k <= last; k += by_lane ? kWarp : 1) {
      const int64_t mine = by_lane ? k + lane : k;
      f(i, mine, mine <= last ? c.target(row.b, i, mine) : -1);
    }
  });
}

// Which of the row's logits are needed, the same for all threads of the group.
struct Need {
  bool near, far;  // some term at horizon 1; at another
};

template <class A>
__device__ Need find_need(const Asked<A>& c, const Row& row, int lane) {
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
template <class A, class F>
__device__ void for_each_allowed(const Asked<A>& c, int64_t q, const Group& g, const F& f) {
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

}  // namespace poh::cuda
