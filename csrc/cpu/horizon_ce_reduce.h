// From the terms of the multi-horizon cross-entropy to its value, and the coefficient of each in it.
#pragma once

#include <tuple>

#include "cpu/horizon_ce.h"
#include "cpu/memory.h"

namespace poh {

enum class Reduction : int64_t { kMean, kSum, kNone, kPositionMean };

inline Reduction to_reduction(int64_t code) {
  check(code >= 0 && code <= 3, "reduction must be a code from 0 to 3, got ", code);
  return static_cast<Reduction>(code);
}

// Per horizon, [2, K]: the share of terms whose target has the largest logit, and their mean (weighted by class).
// NaN where no term occurs; [2, 0] when `correct` is empty.
template <class A>
Tensor measure(const Asked& a, const Tensor& terms, const std::vector<uint8_t>& correct, const A* class_weight) {
  const int64_t K = correct.empty() ? 0 : a.K;
  Tensor out = torch::stable::new_zeros(terms, {2, K});
  for (int64_t k = 1; k <= K; ++k) {
    double count = 0, weight = 0, hits = 0, sum = 0;
    for (int64_t b = 0; b < a.B; ++b) {
      for (int64_t i = 0; i + k < a.L; ++i) {
        const int64_t y = a.row(b, i) < 0 ? -1 : a.target(b, i, k);
        if (y < 0) continue;
        const int64_t at = (b * a.L + i) * K + k - 1;
        count += 1;
        weight += class_weight ? static_cast<double>(class_weight[y]) : 1.0;
        hits += correct[at];
        sum += data<A>(terms)[at];
      }
    }
    data<A>(out)[k - 1] = static_cast<A>(hits / count);
    data<A>(out)[K + k - 1] = static_cast<A>(sum / weight);
  }
  return out;
}

// The value (a scalar, or `terms` itself, weighted, for kNone) and the coefficients [L, K]: in every reduction
// the coefficient of a term depends on its position and horizon only.
template <class A>
std::tuple<Tensor, Tensor> reduce(const Asked& a, Tensor terms, const std::optional<Tensor>& horizon_weights,
                                  const A* class_weight, Reduction reduction) {
  Tensor coefficients = torch::stable::new_zeros(terms, {a.L, a.K});
  A* c = data<A>(coefficients);
  std::vector<double> weight(a.K, 1.0);
  if (horizon_weights) {
    check(horizon_weights->dim() == 1 && horizon_weights->size(0) == a.K, "horizon_weights must have ", a.K);
    const Tensor w = packed(*horizon_weights);
    dispatch(w.scalar_type(), "horizon_weights", [&]<class T>(T) {
      for (int64_t k = 0; k < a.K; ++k) weight[k] = static_cast<double>(data<T>(w)[k]);
    });
  }
  A* term = data<A>(terms);
  if (reduction == Reduction::kNone) {
    for (int64_t i = 0; i < a.L; ++i) {
      for (int64_t k = 0; k < a.K; ++k) c[i * a.K + k] = static_cast<A>(weight[k]);
    }
    if (horizon_weights) {
      for (int64_t j = 0; j < a.B * a.L * a.K; ++j) term[j] *= static_cast<A>(weight[j % a.K]);
    }
    return {terms, coefficients};
  }
  // Sums over the batch, per (i, k): of the weights of the targets (how many, without), and of the terms.
  const int64_t places = a.L * a.K;
  std::vector<double> count(places, 0.0), sum(places, 0.0);
  for (int64_t b = 0; b < a.B; ++b) {
    for (int64_t i = 0; i < a.L; ++i) {
      if (a.row(b, i) < 0) continue;
      for (int64_t k = 1; k <= a.K && i + k < a.L; ++k) {
        const int64_t place = i * a.K + k - 1;
        const int64_t y = a.target(b, i, k);
        if (y < 0) continue;
        count[place] += class_weight ? static_cast<double>(class_weight[y]) : 1.0;
        sum[place] += term[b * places + place];
      }
    }
  }
  const bool per_place = reduction == Reduction::kPositionMean;
  double total = 0, value = 0;
  for (int64_t j = 0; j < places; ++j) {
    total += weight[j % a.K] * (per_place ? static_cast<double>(count[j] != 0) : count[j]);
  }
  // No term, or none of weight: 0, not 0 / 0.
  const double divisor = reduction == Reduction::kSum || total == 0 ? 1.0 : total;
  for (int64_t j = 0; j < places; ++j) {
    const double share = !per_place ? 1.0 : count[j] != 0 ? 1.0 / count[j] : 0.0;
    const double each = weight[j % a.K] / divisor * share;
    c[j] = static_cast<A>(each);
    value += each * sum[j];
  }
  Tensor out = torch::stable::new_empty(terms, {});
  *data<A>(out) = static_cast<A>(value);
  return {out, coefficients};
}

// d loss / d term, from the gradient of the value (a scalar, or [B, L, K] for kNone).
template <class A>
struct Coefficients {
  Tensor grad;
  const A* upstream;
  const A* each;
  int64_t L, K;
  bool per_term;

  Coefficients(const Asked& a, const Tensor& g, const Tensor& coefficients)
      : grad(packed(g)), upstream(data<A>(grad)), each(data<A>(coefficients)), L(a.L), K(a.K) {
    check(grad.scalar_type() == coefficients.scalar_type(), "the gradient of the loss must have its dtype");
    check(coefficients.size(0) == L && coefficients.size(1) == K, "coefficients must be those of the forward pass");
    per_term = grad.dim() == 3;
    check(grad.numel() == (per_term ? a.B * L * K : 1), "the gradient of the loss must have its shape");
  }

  A operator()(int64_t b, int64_t i, int64_t k) const {
    const int64_t place = i * K + k - 1;
    return each[place] * (per_term ? upstream[b * L * K + place] : upstream[0]);
  }
};

}  // namespace poh
