// Horizon 1 under a mask that allows few classes to a row, as a maze does, whose cells have at most 4 neighbours.
// A row is then a handful of numbers, and row by row (horizon_ce.h) most of its 50 ns go into mispredicted branches
// and lists. Here W positions lie across the SIMD lanes, at 5 to 8 ns each.
#pragma once

#include <atomic>

#include "cpu/horizon_ce_call.h"
#include "cpu/parallel.h"
#include "math/log.h"

namespace poh {

template <class A>
class FewAllowed {
 public:
  // Whether this form may do the call at all. It still gives up, by returning false, at a row that allows no class,
  // all, or more than kMost: the row-by-row form then does the whole call.
  static bool suits(const Call& call) {
    return call.asked.K == 1 && call.asked.states == 1 && !call.class_weight && call.softcap == 0 &&
           (call.valid || (call.candidates && call.C <= kMost));
  }

  // lse: those of horizon 1, [B, N].
  FewAllowed(const Call& call, LogSumExp<A>* lse)
      : a_(call.asked),
        V_(call.V),
        C_(call.C),
        valid_(data<bool>(call.valid)),
        candidates_(data<int64_t>(call.candidates)),
        options_{static_cast<A>(call.smoothing), static_cast<A>(call.z_loss)},
        lse_(lse) {}

  // Writes terms [B, L] and the lse of the rows read.
  bool forward(const A* logits, A* terms) const {
    // One batch in one thread: two positions that read one row must not race for its lse.
    return for_batches(1024 / std::max<int64_t>(a_.L, 1), [&](int64_t b, Tile& t) {
      return for_tiles(b, logits, t, [&] { forward_tile(t, terms + b * a_.L); });
    });
  }

  // Writes the whole gradient [B, N, V].
  template <class Coefficient>
  bool backward(const A* logits, const Coefficient& coefficient, A* out) const {
    const int64_t rows = a_.N * V_;
    const bool apart = a_.B < torch::stable::get_num_threads();  // zeros are most of the work: let all threads write
    if (apart) {
      parallel(a_.B * rows, 1 << 18, [&](int64_t i, int64_t end) { std::fill(out + i, out + end, A{0}); });
    }
    return for_batches(1, [&](int64_t b, Tile& t) {
      if (!apart) std::fill(out + b * rows, out + (b + 1) * rows, A{0});
      return for_tiles(b, logits, t, [&] { backward_tile(b, t, coefficient, out); });
    });
  }

 private:
  static constexpr int64_t kMost = 8;
  static constexpr int64_t W = 16;

  // W positions; idle lanes have no allowed class.
  struct Tile {
    int64_t lanes = 0;        // in use
    int64_t slots = 0;        // of the arrays below
    int64_t i[W], q[W];       // position, and row b * N + row
    int32_t y[W];             // target
    int32_t allowed[kMost][W];  // classes, each once; -1: none
    A z[kMost][W];              // their logits; -inf where there is none
    A count[W];                 // how many are allowed
  };

  template <class F>
  bool for_batches(int64_t grain, const F& f) const {
    std::atomic<bool> ok{true};
    parallel(a_.B, grain, [&](int64_t begin, int64_t end) {
      Tile t;
      for (int64_t b = begin; b < end && ok.load(std::memory_order_relaxed); ++b) {
        if (!f(b, t)) ok.store(false, std::memory_order_relaxed);
      }
    });
    return ok;
  }

  // Calls f() with t filled, until every term of batch b has been in it, in ascending order.
  template <class F>
  bool for_tiles(int64_t b, const A* logits, Tile& t, const F& f) const {
    t.lanes = 0;
    for (int64_t i = 0; i + 1 < a_.L; ++i) {
      const int64_t row = a_.row(b, i), y = a_.target(b, i, 1);
      // Written in any case and kept only if it is a term: a branch here would be mispredicted at every path's end.
      t.i[t.lanes] = i, t.q[t.lanes] = b * a_.N + row, t.y[t.lanes] = static_cast<int32_t>(y);
      t.lanes += (row >= 0) & (y >= 0);
      if (t.lanes < W) continue;
      if (!fill(logits, t)) return false;
      f();
      t.lanes = 0;
    }
    if (t.lanes == 0) return true;
    if (!fill(logits, t)) return false;
    f();
    return true;
  }

  // Lists the allowed classes of the tile's rows and their logits. False where horizon_ce.h is needed.
  bool fill(const A* logits, Tile& t) const {
    for (int64_t r = t.lanes; r < W; ++r) t.q[r] = t.q[0], t.y[r] = -1;
    if (!(candidates_ != nullptr ? list_candidates(t) : list_valid(t))) return false;
    for (int64_t j = 0; j < t.slots; ++j) {
      for (int64_t k = 0; k < j; ++k) {  // a class named twice counts once
#pragma omp simd
        for (int64_t r = 0; r < W; ++r) t.allowed[j][r] = t.allowed[k][r] == t.allowed[j][r] ? -1 : t.allowed[j][r];
      }
    }
    for (A& n : t.count) n = 0;
    for (int64_t j = 0; j < t.slots; ++j) {
#pragma omp simd
      for (int64_t r = 0; r < W; ++r) {
        const int32_t c = t.allowed[j][r];
        const A z = logits[t.q[r] * V_ + (c < 0 ? 0 : c)];
        t.z[j][r] = c < 0 ? -std::numeric_limits<A>::infinity() : z;
        t.count[r] += c < 0 ? A{0} : A{1};
      }
    }
    bool proper = true;
    for (int64_t r = 0; r < t.lanes; ++r) proper &= t.count[r] > 0 && t.count[r] < static_cast<A>(V_);
    return proper;
  }

  bool list_candidates(Tile& t) const {
    t.slots = C_;
    for (int64_t r = 0; r < W; ++r) {
      const int64_t* list = candidates_ + t.q[r] * C_;
      for (int64_t j = 0; j < C_; ++j) t.allowed[j][r] = static_cast<int32_t>(list[j]);
    }
    return true;
  }

  bool list_valid(Tile& t) const {
    t.slots = 0;
    for (auto& slot : t.allowed) std::fill(slot, slot + W, -1);
    for (int64_t r = 0; r < t.lanes; ++r) {
      int32_t first[kMost];
      const int64_t n = set_indices(valid_ + t.q[r] * V_, V_, first, kMost);
      if (n > kMost) return false;
      for (int64_t j = 0; j < n; ++j) t.allowed[j][r] = first[j];
      t.slots = std::max(t.slots, n);
    }
    return true;
  }

  void forward_tile(const Tile& t, A* terms) const {
    constexpr A replaced = static_cast<A>(kMaskedLogit);  // the logit of the classes that are not allowed
    A max[W], sum[W], dot[W], z_y[W], log_sum[W], term[W];
    for (int64_t r = 0; r < W; ++r) max[r] = z_y[r] = replaced, dot[r] = 0;
    for (int64_t j = 0; j < t.slots; ++j) {
#pragma omp simd
      for (int64_t r = 0; r < W; ++r) max[r] = t.z[j][r] > max[r] ? t.z[j][r] : max[r];
    }
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) sum[r] = (static_cast<A>(V_) - t.count[r]) * exp_nonpositive(replaced - max[r]);
    for (int64_t j = 0; j < t.slots; ++j) {
#pragma omp simd
      for (int64_t r = 0; r < W; ++r) {
        const A x = t.z[j][r] - max[r];
        sum[r] += exp_nonpositive(x);
        dot[r] += t.allowed[j][r] < 0 ? A{0} : x;
        z_y[r] = t.allowed[j][r] >= 0 && t.allowed[j][r] == t.y[r] ? t.z[j][r] : z_y[r];
      }
    }
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) {
      log_sum[r] = log_normal(sum[r]);
      term[r] = term_value<A>({max[r], log_sum[r]}, z_y[r], A{1}, {t.count[r], t.count[r], dot[r]}, options_);
    }
    for (int64_t r = 0; r < t.lanes; ++r) {
      lse_[t.q[r]] = {max[r], log_sum[r]};
      terms[t.i[r]] = term[r];
    }
  }

  template <class Coefficient>
  void backward_tile(int64_t b, const Tile& t, const Coefficient& coefficient, A* out) const {
    A c[W] = {}, max[W] = {}, log_sum[W] = {}, prob[W], spread[W], hit[W], g[kMost][W];
    for (int64_t r = 0; r < t.lanes; ++r) {
      c[r] = coefficient(b, t.i[r], 1);
      max[r] = lse_[t.q[r]].max, log_sum[r] = lse_[t.q[r]].log_sum;
    }
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) {
      RowGradient<A> sum;
      hit[r] = sum.add(c[r], {max[r], log_sum[r]}, A{1}, t.count[r], t.count[r], options_);
      prob[r] = sum.prob, spread[r] = sum.spread;
    }
    for (int64_t j = 0; j < t.slots; ++j) {
#pragma omp simd
      for (int64_t r = 0; r < W; ++r) {
        const A slope = prob[r] * exp_nonpositive(t.z[j][r] - max[r] - log_sum[r]) - spread[r];
        g[j][r] = t.allowed[j][r] < 0 ? A{0} : t.allowed[j][r] == t.y[r] ? slope - hit[r] : slope;
      }
    }
    // Positions that read the same row add up, in ascending order. An empty slot adds 0 to class 0: dearer than
    // nothing, but cheaper than a branch on how many neighbours a cell has.
    for (int64_t r = 0; r < t.lanes; ++r) {
      A* row = out + t.q[r] * V_;
      for (int64_t j = 0; j < t.slots; ++j) row[std::max(t.allowed[j][r], int32_t{0})] += g[j][r];
    }
  }

  const Asked& a_;
  int64_t V_, C_;
  const bool* valid_;
  const int64_t* candidates_;
  TermOptions<A> options_;
  LogSumExp<A>* lse_;
};

}  // namespace poh
