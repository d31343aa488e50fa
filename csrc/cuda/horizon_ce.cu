// Multi-horizon cross-entropy of dense logits. Forward: the row is read once, online log-sum-exp, for all horizons.
// Backward: one read and one write. A warp works on a row of up to 1024 classes, a block of 8 warps on a longer one.
// Which positions read a row is found by looking through rows[b] (nothing to build, nothing to synchronise); each row
// has one owner, so that duplicates need no atomics and every result is the same in every run.
#include "cuda/horizon_ce_backward.h"
#include "cuda/horizon_ce_reduce.h"
#include "cuda/horizon_ce_row.h"

namespace poh::cuda {
namespace {

using std::optional;

// Writes lse and near_lse of the row, and the term of every (i, k) that reads it.
template <class T, class A>
__global__ void __launch_bounds__(kRowThreads, sizeof(A) == 8 ? 2 : 4)  // enough loads in flight
    forward_rows(HorizonCall<T, A> c, int warps, LogSumExp<A>* lse, LogSumExp<A>* near_lse, A* terms,
                 uint8_t* correct) {
  const Group g(warps);
  const bool smooth = c.options.smoothing != 0;
  for (int64_t q = g.first_row(); q < c.B * c.N; q += g.row_step()) {
    const int64_t b = q / c.N, r = q % c.N;
    const Need need = find_need(c, b, r, g.lane);
    if (!need.near && !need.far) continue;
    OnlineRow<A> some, all;
    if (need.near && c.has_mask()) {
      for_each_allowed(c, q, g, [&](int64_t v) { some.add(c.logit(q, v), c.weight(v), v); });
      some = merge_group(g, some);
    }
    const bool masked = some.count > 0 && some.count < c.V;
    const bool dense = need.far || (need.near && !masked);
    if (dense) {
      for_each_class<true, false, T, A>(c.logits + q * c.V, nullptr, c.V, g, [&](int64_t v, A z) {
        all.add(c.cap(z), smooth ? c.weight(v) : A(0), v);
        return A(0);
      });
      all = merge_group(g, all);
    }
    if (!g.first_warp()) continue;
    const LogSumExp<A> far{all.max, all.log_sum()};
    const Smoothed<A> far_set{static_cast<A>(c.V), c.mass(), all.dot};
    LogSumExp<A> near = far;
    Smoothed<A> near_set = far_set;
    if (masked) {
      const A replaced = static_cast<A>(kMaskedLogit);  // the logit of all other classes
      OnlineRow<A> row = some;
      row.merge(OnlineRow<A>{replaced, static_cast<A>(c.V - some.count), 0, 0, 0, 0});
      near = {row.max, row.log_sum()};
      near_set = {static_cast<A>(some.count), some.mass, row.dot};
    }
    if (g.lane == 0) {
      if (dense) lse[q] = far;
      if (masked) near_lse[q] = near;
    }
    for_each_term(c, b, r, g.lane, true, [&](int64_t i, int64_t k, int64_t y) {
      if (y < 0) return;
      const bool here = masked && k == 1;
      const bool inside = !here || c.allowed(q, y);
      const A z = inside ? c.logit(q, y) : static_cast<A>(kMaskedLogit);
      const int64_t at = (b * c.L + i) * c.K + k - 1;
      terms[at] = term_value(here ? near : far, z, c.weight(y), here ? near_set : far_set, c.options);
      if (correct != nullptr) correct[at] = y == (here ? some.best : all.best);
    });
  }
}

// The arguments of one call, contiguous and checked for what could make a kernel read what is not there.
struct Call {
  Tensor logits, targets;
  optional<Tensor> rows, valid, candidates, class_weight;
  int64_t B, N, V, L, K, C = 0, ignore;
  double smoothing, z_loss, softcap;

  Call(const Tensor& logits_, const Tensor& targets_, const optional<Tensor>& rows_, const optional<Tensor>& valid_,
       const optional<Tensor>& candidates_, const optional<Tensor>& weight_, int64_t horizons, double label_smoothing,
       int64_t ignore_index, double z_loss_, double softcap_)
      : logits(packed(logits_, logits_, "logits")),
        targets(packed(targets_, logits_, "targets")),
        rows(packed(rows_, logits_, "rows")),
        valid(packed(valid_, logits_, "valid")),
        candidates(packed(candidates_, logits_, "candidates")),
        class_weight(packed(weight_, logits_, "weight")),
        K(horizons),
        ignore(ignore_index),
        smoothing(label_smoothing),
        z_loss(z_loss_),
        softcap(softcap_) {
    check(logits.dim() == 3, "logits must have 3 dimensions, got ", logits.dim());
    check_form(targets, "targets", ScalarType::Long, 2);
    B = logits.size(0), N = logits.size(1), V = logits.size(2), L = targets.size(1);
    check(targets.size(0) == B, "targets must have ", B, " sequences, got ", targets.size(0));
    check(K >= 1, "horizons must be at least 1, got ", K);
    check(rows || L <= N, "targets have ", L, " positions but logits only ", N, " rows: pass rows");
    if (rows) {
      check_form(*rows, "rows", ScalarType::Long, 2);
      check(rows->size(0) == B && rows->size(1) == L, "rows must have the shape of targets");
    }
    if (valid) {
      check_form(*valid, "valid", ScalarType::Bool, 3);
      check(valid->numel() == B * N * V, "valid must have the shape of logits");
    }
    if (candidates) {
      check_form(*candidates, "candidates", ScalarType::Long, 3);
      C = candidates->size(2);
      check(candidates->size(0) == B && candidates->size(1) == N, "candidates must have a list for each row");
    }
    if (class_weight) {
      const bool wide = logits.scalar_type() == ScalarType::Double;
      check_form(*class_weight, "weight", wide ? ScalarType::Double : ScalarType::Float, 1);
      check(class_weight->numel() == V, "weight must have ", V, " classes");
    }
  }

  // total_mass gets the sum of the class weights, if there are any; it must outlive the kernels' launches.
  template <class T, class A>
  HorizonCall<T, A> unpack(Tensor& total_mass) const {
    total_mass = empty(logits, dtype_of<A>(), 1);
    const A* const weight = data<A>(class_weight);
    if (weight != nullptr) launch(&sum_weights<A>, logits, Shape{1, 256}, weight, V, data<A>(total_mass));
    return {B, N, V, L, K, C, data<T>(logits), data<int64_t>(targets), data<int64_t>(rows), data<bool>(valid),
            data<int64_t>(candidates), weight, data<A>(total_mass), ignore,
            {static_cast<A>(smoothing), static_cast<A>(z_loss)}, static_cast<A>(softcap)};
  }

  int warps() const { return V <= 1024 ? 1 : kRowThreads / kWarp; }
  Shape shape() const { return {blocks_for(logits, B * N, kRowThreads / kWarp / warps()), kRowThreads}; }
};

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // loss, lse, coefficients, metrics

Forward horizon_ce(Tensor logits, Tensor targets, optional<Tensor> rows, optional<Tensor> valid,
                   optional<Tensor> candidates, optional<Tensor> horizon_weights, optional<Tensor> class_weight,
                   int64_t horizons, double label_smoothing, int64_t ignore_index, int64_t reduction, double z_loss,
                   double softcap, bool metrics) {
  const Call call(logits, targets, rows, valid, candidates, class_weight, horizons, label_smoothing, ignore_index,
                  z_loss, softcap);
  check(reduction >= kMean && reduction <= kPositionMean, "reduction must be a code from 0 to 3, got ", reduction);
  const optional<Tensor> by_horizon = packed(horizon_weights, call.logits, "horizon_weights");
  return dispatch(logits.scalar_type(), "logits", [&](auto zero) -> Forward {
    using T = decltype(zero);
    using A = Accumulate<T>;
    if (by_horizon) {
      check_form(*by_horizon, "horizon_weights", dtype_of<A>(), 1);
      check(by_horizon->size(0) == horizons, "horizon_weights must have ", horizons);
    }
    Tensor mass = call.logits;
    const HorizonCall<T, A> c = call.unpack<T, A>(mass);
    const Tensor lse = zeros(call.logits, dtype_of<A>(), 2, c.B, c.N, 2);
    const Tensor terms = zeros(call.logits, dtype_of<A>(), c.B, c.L, c.K);
    optional<Tensor> correct;
    if (metrics) correct = zeros(call.logits, ScalarType::Byte, c.B, c.L, c.K);
    LogSumExp<A>* const pairs = reinterpret_cast<LogSumExp<A>*>(data<A>(lse));
    if (c.B * c.N * c.V * c.L > 0) {
      launch(&forward_rows<T, A>, logits, call.shape(), c, call.warps(), pairs, pairs + c.B * c.N, data<A>(terms),
             data<uint8_t>(correct));
    }
    const auto [value, coefficients, measured] = reduce(c, terms, correct, by_horizon, reduction);
    return {value, lse, coefficients, measured};
  });
}

Tensor horizon_ce_backward(Tensor grad, Tensor logits, Tensor targets, optional<Tensor> rows, optional<Tensor> valid,
                           optional<Tensor> candidates, optional<Tensor> class_weight, Tensor lse,
                           Tensor coefficients, double label_smoothing, int64_t ignore_index, double z_loss,
                           double softcap) {
  check(coefficients.dim() == 2, "coefficients must have 2 dimensions");
  const Call call(logits, targets, rows, valid, candidates, class_weight, coefficients.size(1), label_smoothing,
                  ignore_index, z_loss, softcap);
  const Tensor upstream = packed(grad, call.logits, "grad");
  return dispatch(logits.scalar_type(), "logits", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    check_form(lse, "lse", dtype_of<A>(), 4);
    check(lse.is_contiguous() && lse.numel() == 4 * call.B * call.N, "lse must be that of the forward pass");
    check_form(coefficients, "coefficients", dtype_of<A>(), 2);
    check(coefficients.is_contiguous() && coefficients.size(0) == call.L,
          "coefficients must be those of the forward pass");
    check(upstream.scalar_type() == dtype_of<A>(), "the gradient of the loss must have its dtype");
    const bool per_term = upstream.dim() == 3;
    check(upstream.numel() == (per_term ? call.B * call.L * call.K : 1),
          "the gradient of the loss must have its shape");
    const Tensor out = torch::stable::new_empty(call.logits, call.logits.sizes());
    Tensor mass = call.logits;
    const HorizonCall<T, A> c = call.unpack<T, A>(mass);
    const LogSumExp<A>* const pairs = reinterpret_cast<const LogSumExp<A>*>(data<A>(lse));
    if (c.B * c.N * c.V > 0) {
      launch(&backward_rows<T, A>, logits, call.shape(), c, call.warps(), pairs, pairs + c.B * c.N,
             Upstream<A>{data<A>(coefficients), data<A>(upstream), per_term}, data<T>(out));
    }
    return out;
  });
}

}  // namespace
}  // namespace poh::cuda

POH_CUDA_LIBRARY(m) {
  m.impl("horizon_ce", TORCH_BOX(&poh::cuda::horizon_ce));
  m.impl("horizon_ce_backward", TORCH_BOX(&poh::cuda::horizon_ce_backward));
}
