// The coefficient of each term in the multi-horizon cross-entropy, and from the terms to its value.
#pragma once

#include <tuple>

#include "horizon_ce/cpu_row_loss.h"
#include "common/cpu_tensors.h"

namespace poh {

enum class Reduction : int64_t { kMean, kSum, kNone, kPositionMean };

inline Reduction to_reduction(int64_t code) {
  check(code >= 0 && code <= 3, "reduction must be a code from 0 to 3, got ", code);
  return static_cast<Reduction>(code);
}

inline std::vector<double> horizon_weights_of(const std::optional<Tensor>& given, int64_t K) {
  std::vector<double> weight(K, 1.0);
  if (given) {
    check(given->dim() == 1 && given->size(0) == K, "horizon_weights must have ", K, " elements");
    const Tensor w = packed(*given);
    dispatch(w.scalar_type(), "horizon_weights", [&]<class T>(T) {
      for (int64_t k = 0; k < K; ++k) weight[k] = static_cast<double>(data<T>(w)[k]);
    });
  }
  return weight;
}

// The coefficient of every term in the loss, [L, K]: in every reduction it depends on position and horizon only.
template <class A>
Tensor coefficients(const Asked& a, const std::optional<Tensor>& horizon_weights,
                    const A* class_weight, Reduction reduction) {
  const std::vector<double> weight = horizon_weights_of(horizon_weights, a.K);
  const int64_t places = a.L * a.K;
  const ScalarType dtype = dtype_of<A>();
  Tensor out = new_zeros({a.L, a.K}, dtype);
  A* c = data<A>(out);
  const bool per_place = reduction == Reduction::kPositionMean;
  double factor = 1;
  std::vector<double> count;
  if (per_place || reduction == Reduction::kMean) {
    count.assign(places, 0.0);  // per (i, k), the weights of the targets in the batch: how many, without weights
    for (int64_t b = 0; b < a.B; ++b) {
      const int64_t *y = a.targets + b * a.L, *row = a.rows == nullptr ? nullptr : a.rows + b * a.L;
      for (int64_t k = 1; k <= a.K; ++k) {
        double* at = count.data() + k - 1;
        const auto add = [&](const auto& weight_of) {  // without branches, which every path's end would mispredict
#pragma omp simd
          for (int64_t i = 0; i < a.L - k; ++i) at[i * a.K] += weight_of(i);
        };
        const auto live = [&](int64_t i) { return (y[i + k] != a.ignore) & !skips_row(row[i], a.ignore); };
        if (class_weight != nullptr) {
          add([&](int64_t i) { return a.row(b, i) >= 0 && y[i + k] != a.ignore ? double{class_weight[y[i + k]]} : 0.0; });
        } else if (row != nullptr) {
          add([&](int64_t i) { return live(i) ? 1.0 : 0.0; });
        } else {
          add([&](int64_t i) { return y[i + k] != a.ignore ? 1.0 : 0.0; });
        }
      }
    }
    double total = 0;
    for (int64_t j = 0; j < places; ++j) {
      total += weight[j % a.K] * (per_place ? static_cast<double>(count[j] != 0) : count[j]);
    }
    factor = mean_factor(total);
  }
  for (int64_t j = 0; j < places; ++j) {
    c[j] = static_cast<A>(weight[j % a.K] * factor * (per_place ? mean_factor(count[j]) : 1.0));
  }
  return out;
}

// The sum of terms [B, L, K] times their coefficients, always in the same order; for kNone the products, in place.
template <class A>
Tensor reduce(const Asked& a, Tensor terms, const Tensor& coefficients, Reduction reduction) {
  const int64_t places = a.L * a.K;
  const A* c = data<A>(coefficients);
  A* term = data<A>(terms);
  if (reduction == Reduction::kNone) {
    for (int64_t b = 0; b < a.B; ++b) {
      for (int64_t j = 0; j < places; ++j) term[b * places + j] *= c[j];
    }
    return terms;
  }
  std::vector<double> sum(places, 0.0);
  for (int64_t b = 0; b < a.B; ++b) {
    for (int64_t j = 0; j < places; ++j) sum[j] += term[b * places + j];
  }
  double value = 0;
  for (int64_t j = 0; j < places; ++j) value += c[j] * sum[j];
  Tensor out = new_empty({}, terms.scalar_type());
  *data<A>(out) = static_cast<A>(value);
  return out;
}

// Per horizon, [2, K]: the share of terms whose target has the largest logit, and their mean (weighted by class).
// NaN where no term occurs, a mean of 0 where none has weight; [2, 0] when not wanted.
template <class A>
Tensor measure(const Asked& a, const Tensor& terms, const uint8_t* correct, bool wanted,
               const A* class_weight) {
  const int64_t K = wanted ? a.K : 0;
  Tensor out = new_zeros({2, K}, terms.scalar_type());
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
    data<A>(out)[K + k - 1] = static_cast<A>(count == 0 ? NAN : sum * mean_factor(weight));
  }
  return out;
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
