// The gradient of the multi-horizon cross-entropy to dense logits: each row is read once and written once, then the few
// classes that terms ask for or that horizon 1 is restricted to are written again, with all that falls on them.
#pragma once

#include "horizon_ce/cuda_terms.h"

namespace poh::cuda {

// Everything of a row's gradient but the logits.
template <class T, class A>
struct RowBackward {
  const HorizonCall<T, A>& c;
  const Upstream<A>& up;
  const Row& at;
  bool masked, dense;
  LogSumExp<A> lse, near_lse;
  A near_count, near_mass;
  RowGradient<A> far, near;

  // Adds a term to `sum`; its hit.
  __device__ A add(RowGradient<A>& sum, int64_t i, int64_t k, int64_t y) const {
    const bool here = masked && k == 1;
    return sum.add(up(c, at.b, i, k), here ? near_lse : lse, c.weight(y), here ? near_mass : c.mass(),
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
    const bool allowed = v >= 0 && masked && c.allowed(c.number(at), v);
    const A z = v >= 0 ? c.logit(at.at, v) : A(0);
    A hits = 0;
    int64_t number = 0;
    *first = true;
    for_each_term(c, at, lane, false, [&](int64_t i, int64_t k, int64_t y) {
      if (y >= 0 && y == v) {
        RowGradient<A> one;
        const A hit = add(one, i, k, y);
        if (!(masked && k == 1) || allowed) hits += hit;  // else the target's logit did not count
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
  if (c.idle()) return;
  for (int64_t place = g.first_row(); place < c.count; place += g.row_step()) {
    const Row at = c.row(place);
    const int64_t q = c.number(at);
    T* const out = grad + place * c.V;
    const Need need = find_need(c, at, g.lane);
    if (!need.near && !need.far) {
      for_each_class<false, true, T, A>(nullptr, out, c.V, g, [](int64_t, auto&) {});
      continue;
    }
    OnlineRow<A> some;  // of the allowed classes: how many, and their weight
    if (need.near && c.has_mask()) {
      for_each_allowed(c, q, g, [&](int64_t v) { some.mass += c.weight(v), ++some.count; });
      some = merge_group(g, some);
    }
    const bool masked = some.count > 0 && some.count < c.V, dense = need.far || (need.near && !masked);
    RowBackward<T, A> row{c, up, at, masked, dense, lse[place], near_lse[place], static_cast<A>(some.count),
                          some.mass, {}, {}};
    for_each_term(c, at, g.lane, true, [&](int64_t i, int64_t k, int64_t y) {
      if (y >= 0) row.add(masked && k == 1 ? row.near : row.far, i, k, y);
    });
    row.far = {warp_sum(row.far.prob), warp_sum(row.far.spread)};
    row.near = {warp_sum(row.near.prob), warp_sum(row.near.spread)};
    const bool by_mask = masked && c.valid != nullptr;
    const bool plain = !by_mask && c.softcap == 0 && c.class_weight == nullptr;
    const A prob = row.far.prob, spread = row.far.spread, max = row.lse.max, log_sum = row.lse.log_sum;
    if (dense) {
      for_each_class<true, true, T, A>(c.logits + place * c.V, out, c.V, g, [&](int64_t v, auto& x) {
        if (plain) {
          for (A& z : x) z = prob * exp_nonpositive(z - max - log_sum) - spread;
          return;
        }
        c.cap_all(x);
        for (A& z : x) {
          z = row.smooth_part(v, z, by_mask && c.valid[q * c.V + v]) * c.slope(z);
          ++v;
        }
      });
    } else {
      for_each_class<false, true, T, A>(nullptr, out, c.V, g, [&](int64_t v, auto& x) {
        if (!by_mask) return;
        for (A& grad : x) {
          if (c.valid[q * c.V + v]) {
            const A z = c.logit(place, v);
            grad = row.smooth_part(v, z, true) * c.slope(z);
          }
          ++v;
        }
      });
    }
    g.sync();  // what was written for the classes below is written again, with their hits
    if (g.first_warp()) {
      int64_t number = 0;
      for_each_reader(c, at.b, at.r, g.lane, [&](int64_t i) {
        const int64_t last = c.last_horizon(at);
        for (int64_t k = c.first_horizon(at); k <= last; k += kWarp) {
          const int64_t y = k + g.lane <= last ? c.target(at.b, i, k + g.lane) : -1;
          bool first;
          const A value = row.whole(y, g.lane, number + g.lane, &first);
          if (y >= 0 && first) out[y] = static_cast<T>(value);
          number += last - k + 1 < kWarp ? last - k + 1 : kWarp;
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
