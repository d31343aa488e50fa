// Which rows the terms of the multi-horizon cross-entropy read, and whether every index is in range.
#include "horizon_ce/cpu_terms.h"

#include <algorithm>

#include "common/index_errors.h"

namespace poh {

namespace {

// First element of t[n] outside [low, high) that is not `except`, or -1.
int64_t first_outside(const int64_t* t, int64_t n, int64_t low, int64_t high, int64_t except) {
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
      if ((t[i] < low || t[i] >= high) && t[i] != except) return i;
    }
  }
  return -1;
}

}  // namespace

void check_indices(const Asked& a, const int64_t* candidates, int64_t C, int64_t V) {
  int64_t at = first_outside(a.targets, a.B * a.L, 0, V, a.ignore);
  if (at >= 0) target_error(at, a.targets[at], a.L, V, a.ignore);
  at = a.rows == nullptr ? -1 : first_outside(a.rows, a.B * a.L, -1, a.N, skipping_row(a.ignore));
  if (at >= 0) row_error(at, a.rows[at], a.L, a.N, a.ignore);
  at = candidates == nullptr ? -1 : first_outside(candidates, a.B * a.N * C, -1, V, -1);
  if (at >= 0) candidate_error(at, candidates[at], a.N, C, V);
}

Readers::Readers(const Asked& a) : start(a.B * a.N * a.states + 1, 0) {
  // Calls f(q, i) for every row of logits that position i of batch b has a term at.
  const auto for_each_reader = [&a](int64_t b, const auto& f) {
    int64_t next = a.L;  // the nearest position after i with a target
    for (int64_t i = a.L - 1; i >= 0; --i) {
      const int64_t r = a.row(b, i);
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

}  // namespace poh
