// Which rows of logits the terms of the multi-horizon cross-entropy read, the classes that horizon 1 allows there, and
// what both forms ask of a device, on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include "common/cpu.h"
#include "common/simd_loops.h"
#include "horizon_ce/arguments.h"

namespace poh {

// For each row of logits q = (b * N + row) * states + state: the positions that have a term there, ascending.
struct Readers {
  std::vector<int64_t> start;     // [B * N * states + 1] into position
  std::vector<int64_t> position;  // i
  std::vector<int64_t> read;      // the q with at least one position, ascending

  explicit Readers(const LossTerms& a) : start(a.B * a.N * a.states + 1, 0) {
    // Calls f(q, i) for every row of logits that position i of batch b has a term at.
    const auto for_each_reader = [&a](int64_t b, const auto& f) {
      int64_t next = a.L;  // the nearest position after i with a target
      for (int64_t i = a.L - 1; i >= 0; --i) {
        const int64_t r = a.row_read(b, i);
        if (r >= 0 && a.states == 1 && !a.table) {
          if (next < a.L && next - i <= a.K) f(b * a.N + r, i);
        } else if (r >= 0) {
          for (int64_t k = 1; k <= a.K; ++k) {
            if (a.target(b, i, k) < 0) continue;
            f((b * a.N + r) * a.states + (a.states == 1 ? 0 : k - 1), i);
            if (a.states == 1) break;
          }
        }
        if (!a.table && a.targets[b * a.L + i] != a.ignore) next = i;
      }
    };
    const int64_t n = a.B * a.N * a.states;
    for (int64_t b = 0; b < a.B; ++b) for_each_reader(b, [this](int64_t q, int64_t) { ++start[q]; });
    int64_t total = 0;
    for (int64_t q = 0; q < n; ++q) {
      if (start[q] > 0) read.push_back(q);
      total += start[q];
      start[q] = total;  // the end of q's readers; filling from there, last position first, moves it to their start
    }
    start[n] = total;
    position.resize(total);
    for (int64_t b = 0; b < a.B; ++b) {
      for_each_reader(b, [this](int64_t q, int64_t i) { position[--start[q]] = i; });
    }
  }
};

// The allowed classes of a row, and their logits and gradients, packed.
template <class A>
struct Allowed {
  // A maze cell has 2 to 4 candidates: so few are quicker one by one, as a vector load just after the scalar stores
  // of its elements has to wait for them.
  static constexpr int64_t kFew = 4;

  std::vector<int32_t> classes;     // ascending
  int64_t n = 0;                    // how many
  std::vector<A> logits, gradient;  // padded to whole vectors
  A best = 0;                       // the largest of the logits

  // Those set in valid[V].
  void list(const bool* valid, int64_t V) {
    classes.resize(V);
    n = set_indices(valid, V, classes.data(), V);
  }

  // Those in candidates[C], where -1 pads.
  void list(const int64_t* candidates, int64_t C) {
    classes.resize(C);
    n = 0;
    for (int64_t j = 0; j < C; ++j) {
      if (candidates[j] >= 0) classes[n++] = static_cast<int32_t>(candidates[j]);
    }
    std::sort(classes.begin(), classes.begin() + n);
    n = std::unique(classes.begin(), classes.begin() + n) - classes.begin();
  }

  // Index of class y, or -1.
  int64_t place(int64_t y) const {
    const int32_t* end = classes.data() + n;
    const int32_t* at = std::lower_bound(classes.data(), end, static_cast<int32_t>(y));
    return at != end && *at == y ? at - classes.data() : -1;
  }

  // The sum of their weights (null: 1 each).
  A mass(const A* class_weight) const {
    if (class_weight == nullptr) return static_cast<A>(n);
    A sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += class_weight[classes[j]];
    return sum;
  }

  // Room for n logits; the padding is -inf, which no maximum and no sum of exponentials sees.
  void pad() {
    const size_t padded = (n + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
    if (logits.size() < padded) {
      logits.resize(padded);
      gradient.resize(padded);
    }
    for (size_t j = n; j < padded; ++j) logits[j] = -std::numeric_limits<A>::infinity();
  }

  // Their logits in row z, soft-capped unless that is 0.
  template <class T>
  void gather(const T* z, A softcap) {
    pad();
    for (int64_t j = 0; j < n; ++j) logits[j] = static_cast<A>(z[classes[j]]);
    if (softcap != 0) soft_cap(logits.data(), n, softcap);
  }
};

struct CpuLoss : Cpu {
  template <class A>
  static Tensor total(const Tensor& class_weight) {
    const A* const w = data<A>(class_weight);
    const Tensor out = empty(class_weight, dtype_of<A>(), 1);
    *data<A>(out) = static_cast<A>(std::accumulate(w, w + class_weight.numel(), 0.0));
    return out;
  }

  // Value (the terms [B, L, K] themselves, weighted, for kNone), coefficients [L, K], and metrics [3, K] where there is
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
        for (int64_t j = 0; j < places; ++j) term[b * places + j] = weighed(c[j], term[b * places + j]);
      }
      return {terms, each, measured};
    }
    std::vector<double> sum(places, 0.0);
    for (int64_t b = 0; b < a.B; ++b) {
      for (int64_t j = 0; j < places; ++j) sum[j] += term[b * places + j];
    }
    double value = 0;
    for (int64_t j = 0; j < places; ++j) value += weighed<double>(c[j], sum[j]);
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
        const int64_t* const row = a.rows == nullptr ? nullptr : a.rows + b * a.L;
        const auto add_horizon = [&](int64_t k, auto step) {  // step: from one position's target to the next one's
          const int64_t *const y = a.targets + a.place(b, 0, k), end = a.end(k);
          double* at = count.data() + k - 1;
          const auto add = [&](const auto& weight_of) {  // without branches, which every path's end would mispredict
#pragma omp simd
            for (int64_t i = 0; i < end; ++i) at[i * a.K] += weight_of(i, y[i * step]);
          };
          if (a.class_weight != nullptr) {
            add([&](int64_t i, int64_t c) {
              return a.row_read(b, i) >= 0 && c != a.ignore ? double{a.class_weight[c]} : 0.0;
            });
          } else if (row != nullptr) {
            add([&](int64_t i, int64_t c) { return (c != a.ignore) & !skips_row(row[i], a.ignore) ? 1.0 : 0.0; });
          } else {
            add([&](int64_t, int64_t c) { return c != a.ignore ? 1.0 : 0.0; });
          }
        };
        for (int64_t k = 1; k <= a.K; ++k) {
          if (a.table && a.K > 1) {
            add_horizon(k, a.K);
          } else {
            add_horizon(k, std::integral_constant<int64_t, 1>());
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

  // Per horizon: the share of terms whose target has the largest logit, their mean (weighted by class), and their
  // weight. The first two are NaN where no term occurs, and the mean is 0 where none has weight.
  template <class A>
  static Tensor measure(const LossCall<A>& a, const Tensor& terms, const optional<Tensor>& correct) {
    const int64_t K = correct ? a.K : 0;
    const Tensor out = empty(terms, dtype_of<A>(), 3, K);
    for (int64_t k = 1; k <= K; ++k) {
      double count = 0, weight = 0, hits = 0, sum = 0;
      for (int64_t b = 0; b < a.B; ++b) {
        for (int64_t i = 0; i < a.end(k); ++i) {
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
      data<A>(out)[K + k - 1] = static_cast<A>(count == 0 ? NAN : weighed(mean_factor(weight), sum));
      data<A>(out)[2 * K + k - 1] = static_cast<A>(weight);
    }
    return out;
  }
};

// Rows a thread takes at a time: enough to hide the taking, few enough to share small batches.
inline int64_t rows_per_block(int64_t V) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(V, 1)); }

}  // namespace poh
