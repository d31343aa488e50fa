// What both forms of the multi-horizon cross-entropy ask of a device, on the CPU: whether indices are in range, and from
// the terms to the value, the coefficient of each term, and the metrics.
#pragma once

#include <numeric>
#include <tuple>
#include <vector>

#include "horizon_ce/arguments.h"

namespace poh {

struct Cpu {
  static bool checks_indices() { return true; }

  // The first element of t (contiguous int64) that is neither `except` nor in [low, high).
  static optional<Outside> first_outside(const Tensor& tensor, int64_t low, int64_t high, int64_t except) {
    const int64_t n = tensor.numel();
    const int64_t* const t = data<int64_t>(tensor);
    const uint64_t range = static_cast<uint64_t>(high - low);
    for (int64_t begin = 0; begin < n; begin += 1024) {
      const int64_t end = std::min<int64_t>(begin + 1024, n);
      uint64_t bad = 0;
#pragma omp simd reduction(| : bad)
      for (int64_t i = begin; i < end; ++i) {
        bad |= static_cast<uint64_t>((static_cast<uint64_t>(t[i] - low) >= range) & (t[i] != except));
      }
      if (bad == 0) continue;
      for (int64_t i = begin; i < end; ++i) {
        if ((t[i] < low || t[i] >= high) && t[i] != except) return Outside{i, t[i]};
      }
    }
    return std::nullopt;
  }

  template <class A>
  static Tensor total(const Tensor& class_weight) {
    const A* const w = data<A>(class_weight);
    const Tensor out = empty(class_weight, dtype_of<A>(), 1);
    *data<A>(out) = static_cast<A>(std::accumulate(w, w + class_weight.numel(), 0.0));
    return out;
  }

  // Value (the terms [B, L, K] themselves, weighted, for kNone), coefficients [L, K], and metrics [2, K] where there is
  // `correct` [B, L, K]. Always in the same order.
  template <class A>
  static std::tuple<Tensor, Tensor, Tensor> reduce(const LossCall<A>& a, const optional<Tensor>& horizon_weights,
                                                   Reduction reduction, const Tensor& terms,
                                                   const optional<Tensor>& correct) {
    const Tensor each = coefficients(a, horizon_weights, reduction, terms);
    const Tensor measured = measure(a, terms, correct);  // before terms are weighted
    const int64_t places = a.L * a.K;
    const A* const c = data<A>(each);
    A* const term = data<A>(terms);
    if (reduction == kNone) {
      for (int64_t b = 0; b < a.B; ++b) {
        for (int64_t j = 0; j < places; ++j) term[b * places + j] *= c[j];
      }
      return {terms, each, measured};
    }
    std::vector<double> sum(places, 0.0);
    for (int64_t b = 0; b < a.B; ++b) {
      for (int64_t j = 0; j < places; ++j) sum[j] += term[b * places + j];
    }
    double value = 0;
    for (int64_t j = 0; j < places; ++j) value += c[j] * sum[j];
    const Tensor out = empty(terms, dtype_of<A>());
    *data<A>(out) = static_cast<A>(value);
    return {out, each, measured};
  }

 private:
  // In every reduction the coefficient of a term depends on position and horizon only.
  template <class A>
  static Tensor coefficients(const LossCall<A>& a, const optional<Tensor>& horizon_weights, Reduction reduction,
                             const Tensor& like) {
    const A* const given = data<A>(horizon_weights);
    const auto weight = [&](int64_t place) { return given == nullptr ? 1.0 : static_cast<double>(given[place % a.K]); };
    const int64_t places = a.L * a.K;
    const Tensor out = empty(like, dtype_of<A>(), a.L, a.K);
    const bool per_place = reduction == kPositionMean;
    double factor = 1;
    std::vector<double> count;
    if (per_place || reduction == kMean) {
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
          if (a.class_weight != nullptr) {
            add([&](int64_t i) {
              return a.row_read(b, i) >= 0 && y[i + k] != a.ignore ? double{a.class_weight[y[i + k]]} : 0.0;
            });
          } else if (row != nullptr) {
            add([&](int64_t i) { return live(i) ? 1.0 : 0.0; });
          } else {
            add([&](int64_t i) { return y[i + k] != a.ignore ? 1.0 : 0.0; });
          }
        }
      }
      double total = 0;
      for (int64_t j = 0; j < places; ++j) {
        total += weight(j) * (per_place ? static_cast<double>(count[j] != 0) : count[j]);
      }
      factor = mean_factor(total);
    }
    for (int64_t j = 0; j < places; ++j) {
      data<A>(out)[j] = static_cast<A>(weight(j) * factor * (per_place ? mean_factor(count[j]) : 1.0));
    }
    return out;
  }

  // Per horizon: the share of terms whose target has the largest logit, and their mean (weighted by class). NaN where no
  // term occurs, a mean of 0 where none has weight.
  template <class A>
  static Tensor measure(const LossCall<A>& a, const Tensor& terms, const optional<Tensor>& correct) {
    const int64_t K = correct ? a.K : 0;
    const Tensor out = empty(terms, dtype_of<A>(), 2, K);
    for (int64_t k = 1; k <= K; ++k) {
      double count = 0, weight = 0, hits = 0, sum = 0;
      for (int64_t b = 0; b < a.B; ++b) {
        for (int64_t i = 0; i + k < a.L; ++i) {
          const int64_t y = a.row_read(b, i) < 0 ? -1 : a.target(b, i, k);
          if (y < 0) continue;
          const int64_t at = (b * a.L + i) * K + k - 1;
          count += 1;
          weight += static_cast<double>(a.weight(y));
          hits += data<uint8_t>(*correct)[at];
          sum += data<A>(terms)[at];
        }
      }
      data<A>(out)[k - 1] = static_cast<A>(hits / count);
      data<A>(out)[K + k - 1] = static_cast<A>(count == 0 ? NAN : sum * mean_factor(weight));
    }
    return out;
  }
};

// Rows a thread takes at a time: enough to hide the taking, few enough to share small batches.
inline int64_t rows_per_block(int64_t V) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(V, 1)); }

}  // namespace poh
