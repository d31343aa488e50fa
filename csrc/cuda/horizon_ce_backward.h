// The gradient of the multi-horizon cross-entropy to dense logits: each row is read once and written once, then the few
// classes that terms ask for or that horizon 1 is restricted to are written again, with all that falls on them.
#pragma once

#include "cuda/horizon_ce_row.h"

namespace poh::cuda {

// d loss / d term: coefficients [L, K] times the gradient of the value, one number or [B, L, K].
template <class A>
struct Upstream {
  const A* coefficients;
  const A* grad;
  bool per_term;
};

// Everything of a row's gradient but the logits.
template <class T, class A>
struct RowBackward {
  const HorizonCall<T, A>& c;
  const Upstream<A>& up;
  int64_t q, b, r;
  bool masked, dense;
  LogSumExp<A> lse, near_lse;
  A near_count, near_mass;
  RowGradient<A> far, near;

  __device__ A coefficient(int64_t i, int64_t k) const {
    const int64_t place = i * c.K + k - 1;
    return up.coefficients[place] * up.grad[up.per_term ? b * c.L * c.K + place : 0];
  }
  // Adds a term to `sum`; its hit.
  __device__ A add(RowGradient<A>& sum, int64_t i, int64_t k, int64_t y) const {
    const bool here = masked && k == 1;
    return sum.add(coefficient(i, k), here ? near_lse : lse, c.weight(y), here ? near_mass : c.mass(),
                   here ? near_count : static_cast<A>(c.V), c.options);
  }
  // The gradient to the logit z of class v as softmax and smoothing make it, without the hits of terms.
  __device__ A smooth_part(int64_t v, A z, bool allowed) const {
    A g = 0;
    if (dense) g += far.prob * exp_nonpositive(z - lse.max - lse.log_sum) - far.spread * c.weight(v);
    if (allowed) g += near.prob * exp_nonpositive(z - near_lse.max - near_lse.log_sum) - near.spread * c.weight(v);
    return g;
  }
  // The whole gradient to class v of this lane (-1: none); the warp goes along. first: whether term number `own` is
  // the first one that asks for v.
  __device__ A whole(int64_t v, int lane, int64_t own, bool* first) const {
    const bool allowed = v >= 0 && masked && c.allowed(q, v);
    const A z = v >= 0 ? c.logit(q, v) : A(0);
    A hits = 0;
    int64_t number = 0;
    *first = true;
    for_each_term(c, b, r, lane, false, [&](int64_t i, int64_t k, int64_t y) {
      if (y >= 0 && y == v) {
        RowGradient<A> one;
        const A hit = add(one, i, k, y);
        if (!(masked && k == 1) || allowed) hits += hit;  // else the target's logit was replaced
        if (number < own) *first = false;
      }
      ++number;
    });
    return v >= 0 ? (smooth_part(v, z, allowed) - hits) * c.slope(z) : A(0);
  }
};

template <class T, class A>
__global__ void __launch_bounds__(kRowThreads, sizeof(A) == 8 ? 2 : 3)  // enough loads in flight
    backward_rows(HorizonCall<T, A> c, int warps, const LogSumExp<A>* lse, const LogSumExp<A>* near_lse,
                  Upstream<A> up, T* grad) {
  const Group g(warps);
  for (int64_t q = g.first_row(); q < c.B * c.N; q += g.row_step()) {
    const int64_t b = q / c.N, r = q % c.N;
    T* const out = grad + q * c.V;
    const Need need = find_need(c, b, r, g.lane);
    if (!need.near && !need.far) {
      for_each_class<false, true, T, A>(nullptr, out, c.V, g, [](int64_t, A) { return A(0); });
      continue;
    }
    OnlineRow<A> some;  // of the allowed classes: how many, and their weight
    if (need.near && c.has_mask()) {
      for_each_allowed(c, q, g, [&](int64_t v) { some.mass += c.weight(v), ++some.count; });
      some = merge_group(g, some);
    }
    const bool masked = some.count > 0 && some.count < c.V, dense = need.far || (need.near && !masked);
    RowBackward<T, A> row{c,    up,    q,     b, r, masked, dense, lse[q], near_lse[q], static_cast<A>(some.count),
                          some.mass, {}, {}};
    for_each_term(c, b, r, g.lane, true, [&](int64_t i, int64_t k, int64_t y) {
      if (y >= 0) row.add(masked && k == 1 ? row.near : row.far, i, k, y);
    });
    row.far = {warp_sum(row.far.prob), warp_sum(row.far.spread)};
    row.near = {warp_sum(row.near.prob), warp_sum(row.near.spread)};
    const bool by_mask = masked && c.valid != nullptr;
    if (dense) {
      for_each_class<true, true, T, A>(c.logits + q * c.V, out, c.V, g, [&](int64_t v, A z) {
        z = c.cap(z);
        return row.smooth_part(v, z, by_mask && c.valid[q * c.V + v]) * c.slope(z);
      });
    } else {
      for_each_class<false, true, T, A>(nullptr, out, c.V, g, [&](int64_t v, A) {
        if (!by_mask || !c.valid[q * c.V + v]) return A(0);
        const A z = c.logit(q, v);
        return row.smooth_part(v, z, true) * c.slope(z);
      });
    }
    g.sync();  // what was written for the classes below is written again, with their hits
    if (g.first_warp()) {
      int64_t number = 0;
      for_each_reader(c, b, r, g.lane, [&](int64_t i) {
        for (int64_t k = 1; k <= c.K; k += kWarp) {
          const int64_t y = c.target(b, i, k + g.lane);
          bool first;
          const A value = row.whole(y, g.lane, number + g.lane, &first);
          if (y >= 0 && first) out[y] = static_cast<T>(value);
          number += c.K - k + 1 < kWarp ? c.K - k + 1 : kWarp;
        }
      });
      __syncwarp();
      for (int64_t j = 0; masked && !by_mask && j < c.C; j += kWarp) {
        const int64_t mine = j + g.lane;
        const int64_t v = mine < c.C && c.counts(q, mine) ? c.candidates[q * c.C + mine] : -1;
        bool first;
        const A value = row.whole(v, g.lane, 0, &first);
        if (v >= 0) out[v] = static_cast<T>(value);
      }
    }
    g.sync();
  }
}

}  // namespace poh::cuda
