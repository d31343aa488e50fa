// Which rows of logits the terms of the multi-horizon cross-entropy read, and the classes that horizon 1 allows there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

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
        if (r >= 0 && a.states == 1) {
          if (next < a.L && next - i <= a.K) f(b * a.N + r, i);
        } else if (r >= 0) {
          for (int64_t k = 1; k <= a.K && i + k < a.L; ++k) {
            if (a.target(b, i, k) >= 0) f((b * a.N + r) * a.states + k - 1, i);
          }
        }
        if (a.targets[b * a.L + i] != a.ignore) next = i;
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

}  // namespace poh
