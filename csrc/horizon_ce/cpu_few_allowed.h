// Horizon 1 under a mask that allows few classes to a row, as a maze does, whose cells have at most 4 neighbours.
// A row is then a handful of numbers, and row by row (cpu_row_loss.h) most of its 50 ns go into mispredicted branches
// and lists. Here W positions lie across the SIMD lanes, at 5 to 8 ns each.
#pragma once

#include <atomic>

#include "common/cpu.h"
#include "common/exp_log.h"
#include "horizon_ce/cpu_terms.h"

namespace poh {

template <class A>
class FewAllowed {
 public:
  // Whether this form may do the call at all. It still gives up, by returning false, at a row that allows no class,
  // all, or more than kMost: the row-by-row form then does the whole call.
  static bool suits(const LossCall<A>& call) {
    return call.K == 1 && call.states == 1 && call.class_weight == nullptr && call.softcap == 0 &&
           (call.valid != nullptr || (call.candidates != nullptr && call.C <= kMost));
  }

  // lse: those of horizon 1, [B, N].
  FewAllowed(const LossCall<A>& call, LogSumExp<A>* lse)
      : a_(call), V_(call.V), C_(call.C), valid_(call.valid), candidates_(call.candidates), options_(call.options),
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
  static constexpr int64_t kUsual = 4;  // neighbours of a maze's cell
  static constexpr int64_t W = 16;

  using V = Vector<A>;
  using I = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;

  // W positions; idle lanes have no allowed class.
  struct Tile {
    int64_t lanes = 0;   // in use
    int64_t slots = 0;   // of the arrays below
    int64_t i[W], q[W];  // position, and row b * N + row
    I y[W];              // target
    I allowed[kMost][W];  // classes, each once; -1: none
    A z[kMost][W];        // their logits; -inf where there is none
    A count[W];           // how many are allowed
  };

  // f(lane) for the first lane of each vector
  template <class F>
  static void each_vector(const F& f) {
#pragma GCC unroll 4
    for (int64_t o = 0; o < W; o += kLanes<A>) f(o);
  }

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
    const int64_t *const targets = a_.targets + a_.place(b, 0, 1), end = a_.end(1);  // with one horizon side by side
    for (int64_t i = 0; i < end; ++i) {
      const int64_t row = a_.row_read(b, i), y = targets[i] == a_.ignore ? -1 : targets[i];
      // Written in any case and kept only if it is a term: a branch here would be mispredicted at every path's end.
      t.i[t.lanes] = i, t.q[t.lanes] = b * a_.N + row, t.y[t.lanes] = static_cast<I>(y);
      t.lanes += (row >= 0) & (y >= 0);
      if (valid_ != nullptr && i + W < a_.L) {
        const int64_t ahead = a_.row_read(b, i + W);
        const char* at = reinterpret_cast<const char*>(valid_ + (b * a_.N + std::max(ahead, int64_t{0})) * V_);
        for (int64_t o = 0; o < std::min<int64_t>(V_, 256); o += 64) __builtin_prefetch(at + o);
      }
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

  // Lists the allowed classes of the tile's rows and their logits. False where cpu_row_loss.h is needed.
  bool fill(const A* logits, Tile& t) const {
    for (int64_t r = t.lanes; r < W; ++r) t.q[r] = t.q[0], t.y[r] = -1;
    if (!(candidates_ != nullptr ? list_candidates(t) : list_valid(t))) return false;
    for (int64_t r = 0; r < W; ++r) {  // one by one: gather instructions take longer than the loads they stand for
      const A* row = logits + t.q[r] * V_;
      for (int64_t j = 0; j < t.slots; ++j) t.z[j][r] = row[std::max(t.allowed[j][r], I{0})];
    }
    each_vector([&](int64_t o) {
      V count{};
      for (int64_t j = 0; j < t.slots; ++j) {
        const auto none = load_integers<A>(t.allowed[j] + o) < 0;
        store<A>(t.z[j] + o, none ? broadcast(-std::numeric_limits<A>::infinity()) : load(t.z[j] + o));
        count += none ? V{} : broadcast(A{1});
      }
      store<A>(t.count + o, count);
    });
    bool proper = true;
    for (int64_t r = 0; r < t.lanes; ++r) proper &= t.count[r] > 0 && t.count[r] < static_cast<A>(V_);
    return proper;
  }

  bool list_candidates(Tile& t) const {
    t.slots = C_;
    for (int64_t r = 0; r < W; ++r) {
      const int64_t* list = candidates_ + t.q[r] * C_;
      for (int64_t j = 0; j < C_; ++j) t.allowed[j][r] = static_cast<I>(list[j]);
    }
    for (int64_t j = 0; j < t.slots; ++j) {
      for (int64_t k = 0; k < j; ++k) {  // a class named twice counts once
#pragma omp simd
        for (int64_t r = 0; r < W; ++r) t.allowed[j][r] = t.allowed[k][r] == t.allowed[j][r] ? -1 : t.allowed[j][r];
      }
    }
    return true;
  }

  bool list_valid(Tile& t) const {
    t.slots = kUsual;
    for (auto& slot : t.allowed) std::fill(slot, slot + W, I{-1});
    int32_t found[kMost];
    for (int64_t r = 0; r < t.lanes; ++r) {
      const int64_t n = set_indices(valid_ + t.q[r] * V_, V_, found, kMost);
      if (n > kMost) return false;
      for (int64_t j = 0; j < kUsual; ++j) t.allowed[j][r] = j < n ? found[j] : -1;
      for (int64_t j = kUsual; j < n; ++j) t.allowed[j][r] = found[j];
      t.slots = std::max(t.slots, n);
    }
    return true;
  }

  void forward_tile(const Tile& t, A* terms) const {
    A max_of[W], log_sum_of[W], term[W];
    each_vector([&](int64_t o) {
      const V count = load(t.count + o);
      const auto y = load_integers<A>(t.y + o);
      V max = broadcast(-std::numeric_limits<A>::infinity()), sum{}, dot{};
      for (int64_t j = 0; j < t.slots; ++j) {
        const V z = load(t.z[j] + o);
        max = z > max ? z : max;
      }
      V below = disallowed_below(max);  // unless the target is found among the allowed
      for (int64_t j = 0; j < t.slots; ++j) {
        const V x = load(t.z[j] + o) - max;
        const auto c = load_integers<A>(t.allowed[j] + o);
        sum += exp_nonpositive(x);
        dot += c < 0 ? V{} : x;
        below = ((c >= 0) & (c == y)) ? x : below;
      }
      const LogSumExp<V> lse{max, log_normal(sum)};
      store<A>(max_of + o, max);
      store<A>(log_sum_of + o, lse.log_sum);
      store<A>(term + o, term_value(lse, below, broadcast(A{1}), {count, count, dot}, options_));
    });
    for (int64_t r = 0; r < t.lanes; ++r) {
      lse_[t.q[r]] = {max_of[r], log_sum_of[r]};
      terms[t.i[r]] = term[r];
    }
  }

  template <class Coefficient>
  void backward_tile(int64_t b, const Tile& t, const Coefficient& coefficient, A* out) const {
    A c_of[W] = {}, max_of[W] = {}, log_sum_of[W] = {}, g[kMost][W];
    for (int64_t r = 0; r < t.lanes; ++r) {
      c_of[r] = coefficient(b, t.i[r], 1);
      max_of[r] = lse_[t.q[r]].max, log_sum_of[r] = lse_[t.q[r]].log_sum;
    }
    each_vector([&](int64_t o) {
      const LogSumExp<V> lse{load(max_of + o), load(log_sum_of + o)};
      const V count = load(t.count + o);
      const auto y = load_integers<A>(t.y + o);
      RowGradient<V> sum;
      const V hit = sum.add(load(c_of + o), lse, broadcast(A{1}), count, count, options_);
      for (int64_t j = 0; j < t.slots; ++j) {
        const auto c = load_integers<A>(t.allowed[j] + o);
        const V slope = sum.prob * exp_nonpositive(load(t.z[j] + o) - lse.max - lse.log_sum) - sum.spread;
        store<A>(g[j] + o, c < 0 ? V{} : c == y ? slope - hit : slope);
      }
    });
    // Positions that read the same row add up, in ascending order. An empty slot adds 0 to class 0: dearer than
    // nothing, but cheaper than a branch on how many neighbours a cell has.
    for (int64_t r = 0; r < t.lanes; ++r) {
      A* row = out + t.q[r] * V_;
      for (int64_t j = 0; j < t.slots; ++j) row[std::max(t.allowed[j][r], I{0})] += g[j][r];
    }
  }

  const LossTerms& a_;
  int64_t V_, C_;
  const bool* valid_;
  const int64_t* candidates_;
  TermOptions<A> options_;
  LogSumExp<A>* lse_;
};

}  // namespace poh
