// The classes a row allows at horizon 1, and their logits and gradients, packed.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "common/simd_loops.h"

namespace poh {

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
