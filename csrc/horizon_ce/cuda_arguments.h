// The arguments common to the ops of the multi-horizon cross-entropy.
#pragma once

#include "horizon_ce/cuda_reduce.h"
#include "horizon_ce/cuda_terms.h"
#include "common/cuda_indices.h"

namespace poh::cuda {

using std::optional;

// The arguments of one call, contiguous and checked for what could make a kernel read what is not there.
struct Call {
  struct Form {
    int64_t B, N, V, horizons, states;
  };

  Tensor on;  // logits or hidden states: the device and dtype
  Tensor targets;
  optional<Tensor> rows, valid, candidates, class_weight;
  int64_t B, N, V, L, K, states, C = 0, ignore;
  double smoothing, z_loss, softcap;

  Call(const Tensor& on_, const Form& form, const Tensor& targets_, const optional<Tensor>& rows_,
       const optional<Tensor>& valid_, const optional<Tensor>& candidates_, const optional<Tensor>& weight_,
       double label_smoothing, int64_t ignore_index, double z_loss_, double softcap_)
      : on(on_),
        targets(packed(targets_, on_, "targets")),
        rows(packed(rows_, on_, "rows")),
        valid(packed(valid_, on_, "valid")),
        candidates(packed(candidates_, on_, "candidates")),
        class_weight(packed(weight_, on_, "weight")),
        B(form.B),
        N(form.N),
        V(form.V),
        K(form.horizons),
        states(form.states),
        ignore(ignore_index),
        smoothing(label_smoothing),
        z_loss(z_loss_),
        softcap(softcap_) {
    check_form(targets, "targets", ScalarType::Long, 2);
    L = targets.size(1);
    check(targets.size(0) == B, "targets must have ", B, " sequences, got ", targets.size(0));
    check(K >= 1, "horizons must be at least 1, got ", K);
    check(states == 1 || states == K, "there must be a state for each horizon, got ", states);
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
      const bool wide = on.scalar_type() == ScalarType::Double;
      check_form(*class_weight, "weight", wide ? ScalarType::Double : ScalarType::Float, 1);
      check(class_weight->numel() == V, "weight must have ", V, " classes");
    }
    if (checks_wanted()) check_indices(targets, rows, candidates, N, V, ignore);
  }

  // total_mass gets the sum of the class weights, if there are any; it must outlive the kernels' launches.
  template <class A>
  Asked<A> asked(Tensor& total_mass) const {
    total_mass = empty(on, dtype_of<A>(), 1);
    const A* const weight = data<A>(class_weight);
    if (weight != nullptr) launch(&sum_weights<A>, on, Shape{1, 256}, weight, V, data<A>(total_mass));
    return {B, N, V, L, K, C, states, data<int64_t>(targets), data<int64_t>(rows), data<bool>(valid),
            data<int64_t>(candidates), weight, data<A>(total_mass), ignore,
            {static_cast<A>(smoothing), static_cast<A>(z_loss)}, static_cast<A>(softcap)};
  }

  // horizon_weights, contiguous and checked.
  template <class A>
  optional<Tensor> by_horizon(const optional<Tensor>& horizon_weights) const {
    const optional<Tensor> w = packed(horizon_weights, on, "horizon_weights");
    if (w) {
      check_form(*w, "horizon_weights", dtype_of<A>(), 1);
      check(w->size(0) == K, "horizon_weights must have ", K, " elements");
    }
    return w;
  }

  // d loss / d term, from the gradient of the loss (contiguous) and the coefficients of the forward pass.
  template <class A>
  Upstream<A> upstream(const Tensor& grad, const Tensor& coefficients) const {
    check_form(coefficients, "coefficients", dtype_of<A>(), 2);
    check(coefficients.is_contiguous() && coefficients.size(0) == L && coefficients.size(1) == K,
          "coefficients must be those of the forward pass");
    check(grad.scalar_type() == dtype_of<A>(), "the gradient of the loss must have its dtype");
    const bool per_term = grad.dim() == 3;
    check(grad.numel() == (per_term ? B * L * K : 1), "the gradient of the loss must have its shape");
    return {data<A>(coefficients), data<A>(grad), per_term};
  }
};

}  // namespace poh::cuda
