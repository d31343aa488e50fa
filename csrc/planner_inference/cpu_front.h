// Which cells of a maze a pass computes, once some of them no longer change: what a cell does depends on itself, its
// candidates and the weights of the heads alone, so a cell none of which changed would only repeat itself. What is left
// is the front of the news, some tens of cells however large the maze is.
#pragma once

#include "neighbor_attention/cpu_lanes.h"

namespace poh {

class PassFront {
  static constexpr int64_t W = kLanes<float>;

 public:
  std::vector<int32_t> active;  // the cells to compute
  std::vector<int32_t> lists;   // their candidates in blocks of W cells, as Neighbors::block

  PassFront(const Neighbors& neighbors, const AttentionShape& shape) : all_(neighbors), s(shape) {}

  // From here on for maze b.
  void start(int64_t b) {
    b_ = b;
    seen_.resize(s.N, -1);
    readers_from_.assign(s.N + 1, 0);
    const auto each = [&](const auto& f) {
      for (int64_t i = 0; i < s.N; ++i) {
        for (int64_t k = 0; k < s.C; ++k) {
          if (const int32_t j = neighbor(i, k); j >= 0) f(static_cast<int32_t>(i), j);
        }
      }
    };
    each([&](int32_t, int32_t j) { ++readers_from_[j + 1]; });
    for (int64_t j = 0; j < s.N; ++j) readers_from_[j + 1] += readers_from_[j];
    readers_.resize(readers_from_[s.N]);
    std::vector<int32_t> next(readers_from_.begin(), readers_from_.end() - 1);
    each([&](int32_t i, int32_t j) { readers_[next[j]++] = i; });
  }

  // After a pass that changed these cells.
  void advance(const std::vector<int32_t>& changed) {
    active.clear();
    ++turn_;
    const auto add = [&](int32_t cell) {
      if (seen_[cell] == turn_) return;
      seen_[cell] = turn_;
      active.push_back(cell);
    };
    for (const int32_t j : changed) {
      add(j);
      for (int32_t r = readers_from_[j]; r < readers_from_[j + 1]; ++r) add(readers_[r]);
    }
    const int64_t n = static_cast<int64_t>(active.size());
    lists.assign((n + W - 1) / W * W * s.C, -1);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t k = 0; k < s.C; ++k) lists[(i / W * s.C + k) * W + i % W] = neighbor(active[i], k);
    }
  }

 private:
  const Neighbors& all_;
  const AttentionShape& s;
  int64_t b_ = 0;
  std::vector<int32_t> seen_;  // the turn in which a cell was last found active
  int32_t turn_ = 0;
  // readers_[readers_from_[j] ...]: the cells that have j among their candidates, and so change with it.
  std::vector<int32_t> readers_from_, readers_;

  int32_t neighbor(int64_t cell, int64_t slot) const { return all_.block(b_, cell / W)[slot * W + cell % W]; }
};

}  // namespace poh
