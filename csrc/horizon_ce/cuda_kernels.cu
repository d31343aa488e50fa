// The kernels of cuda_kernels.h.
#include "horizon_ce/cuda_kernels.h"

#include "horizon_ce/cuda_backward.h"

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
    const int64_t q = c.number(row);
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

}  // namespace poh::cuda
