// The loss and the gradient of one row in the multi-horizon cross-entropy. The dense and the linear form differ only in
// where the logits of a row come from.
#pragma once

#include <cstring>
#include <vector>

#include "horizon_ce/cpu_terms.h"

namespace poh {

template <class A>
struct Term {
  int64_t i, k, y;
  A hit;  // see RowGradient
};

// Memory of one thread, reused from row to row.
template <class A>
struct RowScratch {
  std::vector<A> row, gradient;  // of the V classes
  Allowed<A> allowed;            // at horizon 1
  int64_t b = 0;                 // the batch of the row
  std::vector<Term<A>> terms;
};

// The loss of single rows. T is the dtype of the logits, A of all arithmetic.
template <class T, class A = Accumulate<T>>
struct RowLoss {
  LossCall<A> c;
  const Readers& readers;
  LogSumExp<A>* lse;       // [B * N * states] of the rows
  LogSumExp<A>* near_lse;  // the same of the allowed classes alone, as horizon 1 sees it
  uint8_t* correct;        // [B, L, K] or null: whether the target has the largest logit (the first of equals)

  // What of row q is to be computed.
  struct Need {
    bool dense;   // the logits as they are
    bool masked;  // horizon 1 with scratch.allowed, a proper subset of the classes
  };

  Need prepare(int64_t q, RowScratch<A>& s) const {
    const int64_t row = c.states == 1 ? q : q / c.states, state = q - row * c.states;
    const int64_t b = s.b = row / c.N;
    const int64_t first = c.states == 1 ? 1 : state + 1, last = c.states == 1 ? c.K : state + 1;
    bool near = false, far = false;
    s.terms.clear();
    for (int64_t j = readers.start[q]; j < readers.start[q + 1]; ++j) {
      const int64_t i = readers.position[j];
      for (int64_t k = first; k <= last; ++k) {
        const int64_t y = c.target(b, i, k);
        if (y < 0) continue;
        s.terms.push_back({i, k, y, A{0}});
        (k == 1 ? near : far) = true;
      }
    }
    const bool masked = near && find_allowed(row, s.allowed);
    return {far || (near && !masked), masked};
  }

  // Writes the term of every (i, k) that reads row q into terms [L, K] of its batch.
  void forward(int64_t q, const T* z, A* terms, RowScratch<A>& s) const {
    const Need need = prepare(q, s);
    const A* row = nullptr;
    Smoothed<A> all{}, some{};
    A best = 0;
    if (need.dense) {
      row = load_row(z, s);
      const A max = best = row_max(row, c.V);
      const RowSums<A> sums = c.options.smoothing == 0 ? row_sums<false, false>(row, c.class_weight, c.V, max)
                              : c.class_weight == nullptr ? row_sums<true, false>(row, c.class_weight, c.V, max)
                                                        : row_sums<true, true>(row, c.class_weight, c.V, max);
      lse[q] = {max, std::log(sums.exp)};
      all = {static_cast<A>(c.V), c.mass(), sums.dot};
    }
    if (need.masked) {
      s.allowed.gather(z, c.softcap);
      masked_forward(q, some, s.allowed);
    }
    write_terms(q, row, best, need.masked, all, some, terms, s);
  }

  // The same for horizon 1 only, from s.allowed.logits (after prepare()).
  void forward_compact(int64_t q, A* terms, RowScratch<A>& s) const {
    Smoothed<A> some{};
    masked_forward(q, some, s.allowed);
    write_terms(q, nullptr, A{0}, true, {}, some, terms, s);
  }

  // Writes the gradient of row q, d sum(coefficient(b, i, k) * term) / d z, to out; each element once.
  template <class Coefficient>
  void backward(int64_t q, const T* z, T* out, const Coefficient& coefficient, RowScratch<A>& s) const {
    const Need need = prepare(q, s);
    if (need.masked) {
      s.allowed.gather(z, c.softcap);
      masked_backward(q, coefficient, s);
    }
    if (!need.dense) {
      std::memset(static_cast<void*>(out), 0, c.V * sizeof(T));
      for (int64_t j = 0; need.masked && j < s.allowed.n; ++j) {
        out[s.allowed.classes[j]] = static_cast<T>(s.allowed.gradient[j] * c.slope(s.allowed.logits[j]));
      }
      return;
    }
    RowGradient<A> sum;
    for (Term<A>& t : s.terms) {
      if (t.k == 1 && need.masked) continue;
      t.hit = sum.add(coefficient(s.b, t.i, t.k), lse[q], c.weight(t.y), c.mass(), static_cast<A>(c.V), c.options);
    }
    const A* row = load_row(z, s);
    A* g = gradient_row(out, s);
    softmax_gradient(row, c.class_weight, g, c.V, lse[q].max, lse[q].log_sum, sum.prob, sum.spread);
    for (const Term<A>& t : s.terms) {
      if (t.k > 1 || !need.masked) g[t.y] -= t.hit;
    }
    for (int64_t j = 0; need.masked && j < s.allowed.n; ++j) g[s.allowed.classes[j]] += s.allowed.gradient[j];
    if (const A cap = c.softcap; cap != 0) {
#pragma omp simd
      for (int64_t v = 0; v < c.V; ++v) g[v] *= cap_slope(row[v], cap);
    }
    if constexpr (!std::is_same_v<T, A>) convert(g, out, c.V);
  }

  // s.allowed.gradient: the gradient of horizon 1 to s.allowed.logits (before the slope of the soft cap).
  template <class Coefficient>
  void masked_backward(int64_t q, const Coefficient& coefficient, RowScratch<A>& s) const {
    Allowed<A>& set = s.allowed;
    const LogSumExp<A> lse1 = near_lse[q];
    const A count = static_cast<A>(set.n), mass = set.mass(c.class_weight);
    RowGradient<A> sum;
    for (Term<A>& t : s.terms) {
      if (t.k == 1) t.hit = sum.add(coefficient(s.b, t.i, t.k), lse1, c.weight(t.y), mass, count, c.options);
    }
    A* g = set.gradient.data();
    const A* z = set.logits.data();
    const int64_t whole = (set.n + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
    const auto slope = [&](A x) { return sum.prob * exp_nonpositive(x - lse1.max - lse1.log_sum) - sum.spread; };
    if (set.n <= Allowed<A>::kFew) {
      for (int64_t j = 0; j < set.n; ++j) g[j] = slope(z[j]);
    } else {
#pragma omp simd
      for (int64_t j = 0; j < whole; ++j) g[j] = slope(z[j]);
    }
    if (c.class_weight != nullptr && sum.spread != 0) {
      for (int64_t j = 0; j < set.n; ++j) g[j] += sum.spread * (1 - c.class_weight[set.classes[j]]);
    }
    for (const Term<A>& t : s.terms) {
      const int64_t j = t.k == 1 ? set.place(t.y) : -1;  // -1: not allowed, so that its logit is none of the row's
      if (j >= 0) g[j] -= t.hit;
    }
  }

 private:
  // Lists the allowed classes of a row; false if all are.
  bool find_allowed(int64_t row, Allowed<A>& allowed) const {
    allowed.n = 0;
    if (c.valid != nullptr) {
      allowed.list(c.valid + row * c.V, c.V);
    } else if (c.candidates != nullptr) {
      allowed.list(c.candidates + row * c.C, c.C);
    }
    return allowed.n > 0 && allowed.n < c.V;
  }

  // The row in A, soft-capped: the logits themselves where they are that already.
  const A* load_row(const T* z, RowScratch<A>& s) const {
    if constexpr (std::is_same_v<T, A>) {
      if (c.softcap == 0) return z;
    }
    s.row.resize(c.V);
    convert(z, s.row.data(), c.V);
    if (c.softcap != 0) soft_cap(s.row.data(), c.V, c.softcap);
    return s.row.data();
  }

  A* gradient_row(T* out, RowScratch<A>& s) const {
    if constexpr (std::is_same_v<T, A>) {
      return out;
    } else {
      s.gradient.resize(c.V);
      return s.gradient.data();
    }
  }

  void masked_forward(int64_t q, Smoothed<A>& some, Allowed<A>& set) const {
    constexpr int64_t W = kLanes<A>;
    const A* z = set.logits.data();
    A sum = 0;
    if (set.n <= Allowed<A>::kFew) {
      set.best = -std::numeric_limits<A>::infinity();
      for (int64_t j = 0; j < set.n; ++j) set.best = z[j] > set.best ? z[j] : set.best;
      for (int64_t j = 0; j < set.n; ++j) sum += exp_nonpositive(z[j] - set.best);
    } else {
      set.best = row_max(z, (set.n + W - 1) / W * W);
      Vector<A> exp{};
      for (int64_t i = 0; i < set.n; i += W) exp += exp_nonpositive(load(z + i) - set.best);
      sum = fold_sum<A>(exp);
    }
    some = {static_cast<A>(set.n), set.mass(c.class_weight), A{0}};
    for (int64_t j = 0; j < set.n; ++j) some.dot += c.weight(set.classes[j]) * (z[j] - set.best);
    near_lse[q] = {set.best, std::log(sum)};
  }

  void write_terms(int64_t q, const A* row, A best, bool masked, const Smoothed<A>& all, const Smoothed<A>& some,
                   A* terms, const RowScratch<A>& s) const {
    const Allowed<A>& set = s.allowed;
    for (const Term<A>& t : s.terms) {
      const int64_t at = t.i * c.K + t.k - 1;
      bool hit;
      if (t.k == 1 && masked) {
        const int64_t j = set.place(t.y);
        const A below = j >= 0 ? set.logits[j] - set.best : disallowed_below(set.best);
        terms[at] = term_value(near_lse[q], below, c.weight(t.y), some, c.options);
        hit = j >= 0 && is_first(set.logits.data(), j, set.best);
      } else {
        terms[at] = term_value(lse[q], row[t.y] - lse[q].max, c.weight(t.y), all, c.options);
        hit = correct != nullptr && is_first(row, t.y, best);
      }
      if (correct != nullptr) correct[s.b * c.L * c.K + at] = hit;
    }
  }
};

}  // namespace poh
