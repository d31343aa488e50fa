// Multi-horizon cross-entropy of dense logits on CUDA: the kernels, which the linear form shares, and the ops.
//
// A warp works on a row of up to 1024 classes, a block of 8 warps on a longer one. Forward: the row is read once,
// online log-sum-exp, for all horizons. Backward: each row is read once and written once, then the few classes that
// terms ask for or that horizon 1 is restricted to are written again, with all that falls on them. Which positions read
// a row is found by looking through rows[b] (nothing to build, nothing to synchronise); each row has one owner, so that
// duplicates need no atomics and every result is the same in every run.
#include "horizon_ce/cuda_reduce.h"
#include "horizon_ce/cuda_terms.h"
#include "horizon_ce/ops.h"

namespace poh::cuda {
namespace {

// Writes lse and near_lse of the row, and the term of every (i, k) that reads it.
template <class T, class A>
__global__ void __launch_bounds__(kRowThreads, sizeof(A) == 8 ? 2 : 4)  // enough loads in flight
    forward_rows(HorizonCall<T, A> c, int warps, LogSumExp<A>* lse, LogSumExp<A>* near_lse, A* terms,
                 uint8_t* correct) {
  const Group g(warps);
  if (c.idle()) return;
  const bool smooth = c.options.smoothing != 0, weighted = smooth && c.class_weight != nullptr;
  const A equal = smooth ? 1 : 0;  // the weight of all classes, if not weighted
  for (int64_t place = g.first_row(); place < c.count; place += g.row_step()) {
    const Row row = c.row(place);
    const int64_t q = row.number(c);
    const Need need = find_need(c, row, g.lane);
    if (!need.near && !need.far) continue;
    OnlineRow<A> some, all;
    if (need.near && c.has_mask()) {
      for_each_allowed(c, q, g, [&](int64_t v) { some.add(c.logit(place, v), c.weight(v), v); });
      some = merge_group(g, some);
    }
    const bool masked = some.count > 0 && some.count < c.V;
    const bool dense = need.far || (need.near && !masked);
    if (dense) {
      for_each_class<true, false, T, A>(c.logits + place * c.V, nullptr, c.V, g, [&](int64_t v, auto& z) {
        c.cap_all(z);
        if (weighted) {
          all.add_above(z, [&](int j) { return c.class_weight[v + j]; }, v);
        } else {
          all.add_above(z, [&](int) { return equal; }, v);
        }
      });
      all = merge_group(g, all);
    }
    if (!g.first_warp()) continue;
    const LogSumExp<A> far{all.max, all.log_sum()};
    const Smoothed<A> far_set{static_cast<A>(c.V), c.mass(), all.dot};
    LogSumExp<A> near = far;
    Smoothed<A> near_set = far_set;
    if (masked) near = sums_of_allowed(some, &near_set);
    if (g.lane == 0) {
      if (dense) lse[place] = far;
      if (masked) near_lse[place] = near;
    }
    for_each_term(c, row, g.lane, true, [&](int64_t i, int64_t k, int64_t y) {
      if (y < 0) return;
      const bool here = masked && k == 1;
      const bool inside = !here || c.allowed(q, y);
      const A max = here ? near.max : far.max;
      const A below = inside ? c.logit(place, y) - max : disallowed_below(max);
      const int64_t at = (row.b * c.L + i) * c.K + k - 1;
      terms[at] = term_value(here ? near : far, below, c.weight(y), here ? near_set : far_set, c.options);
      if (correct != nullptr) correct[at] = y == (here ? some.best : all.best);
    });
  }
}

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
    return sum.add(up(at.b, i, k), here ? near_lse : lse, c.weight(y), here ? near_mass : c.mass(),
                   here ? near_count : static_cast<A>(c.V), c.options);
  }
  // The gradient to the logit z of class v as softmax and smoothing make it, without the hits of terms.
  __device__ A smooth_part(int64_t v, A z, bool allowed) const {
    const auto part = [&](const RowGradient<A>& sum, const LogSumExp<A>& of) {
      return sum.prob * exp_nonpositive(z - of.max - of.log_sum) - weighed(sum.spread, c.weight(v));
    };
    A g = 0;
    if (dense) g += part(far, lse);
    if (allowed) g += part(near, near_lse);
    return g;
  }
  // The whole gradient to class v of this lane (-1: none); the warp goes along. first: whether term number `own` is
  // the first one that asks for v.
  __device__ A whole(int64_t v, int lane, int64_t own, bool* first) const {
    const bool allowed = v >= 0 && masked && c.allowed(at.number(c), v);
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
    const int64_t q = at.number(c);
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
        const int64_t last = at.last_horizon(c);
        for (int64_t k = at.first_horizon(); k <= last; k += kWarp) {
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

int warps_for(int64_t V) { return V <= 1024 ? 1 : kRowThreads / kWarp; }

Shape shape_for(const Tensor& on, int64_t count, int64_t V) {
  return {blocks_for(on, count, kRowThreads / kWarp / warps_for(V)), kRowThreads};
}

}  // namespace

template <class T, class A>
void forward(const Tensor& on, const HorizonCall<T, A>& c, LogSumExp<A>* lse, A* terms, uint8_t* correct) {
  if (c.count * c.V * c.L == 0) return;
  launch(&forward_rows<T, A>, on, shape_for(on, c.count, c.V), c, warps_for(c.V), lse, lse + c.count, terms, correct);
}

template <class T, class A>
void backward(const Tensor& on, const HorizonCall<T, A>& c, const LogSumExp<A>* lse, const Upstream<A>& up, T* grad) {
  if (c.count * c.V == 0) return;
  launch(&backward_rows<T, A>, on, shape_for(on, c.count, c.V), c, warps_for(c.V), lse, lse + c.count, up, grad);
}

#define POH_INSTANTIATE(T)                                                                                           \
  template void forward(const Tensor&, const HorizonCall<T, Accumulate<T>>&, LogSumExp<Accumulate<T>>*,              \
                        Accumulate<T>*, uint8_t*);                                                                   \
  template void backward(const Tensor&, const HorizonCall<T, Accumulate<T>>&, const LogSumExp<Accumulate<T>>*,       \
                         const Upstream<Accumulate<T>>&, T*)
POH_INSTANTIATE(float);
POH_INSTANTIATE(double);
POH_INSTANTIATE(BFloat16);
POH_INSTANTIATE(Half);

namespace {

struct CudaDense : CudaLoss {
  template <class T, class A = Accumulate<T>>
  static void forward(const LossCall<A>& call, const Tensor& logits, LogSumExp<A>* lse, A* terms, uint8_t* correct) {
    cuda::forward(logits, HorizonCall<T, A>{call, data<T>(logits), nullptr, call.B * call.N}, lse, terms, correct);
  }

  template <class T, class A = Accumulate<T>>
  static Tensor backward(const LossCall<A>& call, const Tensor& logits, LogSumExp<A>* lse, const Upstream<A>& up) {
    const Tensor out = torch::stable::new_empty(logits, logits.sizes());
    cuda::backward(logits, HorizonCall<T, A>{call, data<T>(logits), nullptr, call.B * call.N}, lse, up, data<T>(out));
    return out;
  }
};

}  // namespace
}  // namespace poh::cuda

POH_CUDA_LIBRARY(m) {
  m.impl("horizon_ce", TORCH_BOX(&poh::DenseLoss<poh::cuda::CudaDense>::forward));
  m.impl("horizon_ce_backward", TORCH_BOX(&poh::DenseLoss<poh::cuda::CudaDense>::backward));
}
