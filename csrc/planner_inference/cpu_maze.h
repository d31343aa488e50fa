// Which cells of a maze a pass computes, once some of them no longer change: what a cell does depends on itself, its
// candidates and the weights of the heads alone, so a cell none of which changed would only repeat itself. What is left
// is the front of the news, some tens of cells however large the maze is.
#pragma once

#include "neighbor_attention/cpu_head.h"
#include "neighbor_attention/cpu_lanes.h"
#include "planner_inference/cpu_layers.h"

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

// What all mazes of a call share.
struct PassCall {
  AttentionShape shape;
  int64_t d, step;
  std::vector<int64_t> after;  // the numbers of passes whose states are wanted; the last is how many are run
  int64_t slow_period;
  bool inject;
  float tolerance;
  const Neighbors& neighbors;
  std::vector<PassBlock> blocks;
  std::vector<PassRouter> routers;  // one for each block, or none
  int64_t router_state;             // numbers of a router's state: slow, fast, the weights in use

  bool settles() const { return tolerance > 0; }
};

// A maze on its way, and what a thread works in.
class PassMaze {
  using A = float;
  static constexpr int64_t W = kLanes<A>;
  static constexpr int64_t kTileRows = 32;  // rows of all but the attention

 public:
  explicit PassMaze(const PassCall& call)
      : c(call), s(call.shape), d(call.d), padded(vectors_for<A>(s.D) * W), qkv_(3 * s.H * s.N * padded + W),
        attended_(s.N * d), scores_((s.slots() + 1) * W + padded), input_(kTileRows * d),
        front_(call.neighbors, call.shape) {
    const PassBlock& block = c.blocks.front();
    wide_.resize(kTileRows * std::max(block.qkv.stride, block.expand.stride));
    first_.resize(kTileRows * block.out.stride);
    second_.resize(kTileRows * block.contract.stride);
    gates_.resize(s.H);
    if (!c.routers.empty()) router_room_.resize(c.routers.front().room() + d + s.H);
  }

  // From x [N, d] to the states found [N, d], `found_stride` numbers from one to the next; router states and weights
  // are those of this maze, `stride` numbers from one block to the next.
  template <int NV, int S>
  void run(int64_t b, const A* x, const A* tokens, A* found, int64_t found_stride, A* router_states,
           int64_t state_stride, A* weights, int64_t weight_stride) {
    // Computed where the last state is to stand; those on the way are copies.
    const auto last = c.after.end() - 1;
    b_ = b, x_ = std::copy(x, x + s.N * d, found + (last - c.after.begin()) * found_stride) - s.N * d;
    auto next = c.after.begin();
    const auto keep = [&] {
      std::copy(x_, x_ + s.N * d, found);
      found += found_stride, ++next;
    };
    if (c.settles()) front_.start(b);
    sum_valid_ = false;
    token_sum_.clear();
    bool stale = true;  // the inputs of all cells, and with them q, k and v
    for (int64_t p = c.step; p < *last; ++p) {
      const A* added = c.inject && p > 0 ? tokens : nullptr;
      bool all = stale;
      for (size_t i = 0; i < c.blocks.size(); ++i, added = nullptr) {
        const A* gates = nullptr;
        if (!c.routers.empty()) {
          A* const state = router_states + static_cast<int64_t>(i) * state_stride;
          all |= route(c.routers[i], added, p, state);
          const A* const used = state + c.router_state - s.H;
          std::copy(used, used + s.H, weights);
          weights += weight_stride;
          for (int64_t h = 0; h < s.H; ++h) gates_[h] = used[h] * c.blocks[i].head_scale[h];
          gates = gates_.data();
        }
        pass<NV, S>(c.blocks[i], added, gates, all, stale);
      }
      stale = !c.settles() || (c.inject && p == 0);  // the second pass is the first to see the tokens again
      if (p + 1 == *next && next != last) keep();
      if (!stale && c.routers.empty() && changed_.empty()) {  // a fixed point
        while (next != last) keep();
        return;
      }
    }
  }

 private:
  const PassCall& c;
  const AttentionShape& s;
  int64_t d, padded;
  std::vector<A> qkv_, attended_, scores_, input_, wide_, first_, second_, gates_, router_room_;
  PassFront front_;
  std::vector<int32_t> changed_;  // by the last pass
  std::vector<double> sum_, token_sum_;
  bool sum_valid_ = false;
  int64_t b_ = 0;
  A* x_ = nullptr;

  // What a block is given for a cell.
  void input(int64_t cell, const A* added, A* to) const {
    const A* const x = x_ + cell * d;
    for (int64_t j = 0; j < d; ++j) to[j] = added == nullptr ? x[j] : x[j] + added[cell * d + j];
  }

  // Over the cells. Doubles, because the sum of x is kept up by differences.
  void add_up(const A* rows, std::vector<double>& to) const {
    to.assign(d, 0);
    for (int64_t i = 0; i < s.N; ++i) {
      for (int64_t j = 0; j < d; ++j) to[j] += rows[i * d + j];
    }
  }

  // Whether the weights in use change; they stay as long as they would move by no more than the tolerance.
  bool route(const PassRouter& router, const A* added, int64_t p, A* state) {
    A *const mean = router_room_.data(), *const fresh = mean + d, *const used = state + c.router_state - s.H;
    if (!sum_valid_ || !c.settles()) add_up(x_, sum_);
    if (added != nullptr && token_sum_.empty()) add_up(added, token_sum_);
    sum_valid_ = true;
    for (int64_t j = 0; j < d; ++j) {
      mean[j] = static_cast<A>((sum_[j] + (added == nullptr ? 0 : token_sum_[j])) / static_cast<double>(s.N));
    }
    router.step(mean, p % c.slow_period == 0, state, fresh, fresh + s.H);
    bool moved = p == 0 || !c.settles();
    for (int64_t h = 0; h < s.H; ++h) moved |= !(std::abs(fresh[h] - used[h]) <= c.tolerance);
    if (moved) std::copy(fresh, fresh + s.H, used);
    return moved;
  }

  // Through a block: of all cells or of the front; q, k and v of the cells that changed, or of all if they are stale.
  template <int NV, int S>
  void pass(const PassBlock& block, const A* added, const A* gates, bool all, bool stale) {
    const int64_t rows = s.N * padded;
    const auto cell_of = [&](int64_t i) { return all ? i : front_.active[i]; };
    const auto fresh_cell = [&](int64_t i) { return stale ? i : changed_[i]; };
    const int64_t fresh = stale ? s.N : static_cast<int64_t>(changed_.size());
    for (int64_t i = 0; i < fresh; i += kTileRows) {
      const int64_t n = std::min(kTileRows, fresh - i);
      for (int64_t r = 0; r < n; ++r) input(fresh_cell(i + r), added, input_.data() + r * d);
      block.qkv.apply(input_.data(), d, n, wide_.data());
      for (int64_t r = 0; r < n; ++r) {
        const A* const from = wide_.data() + r * block.qkv.stride;
        A* const to = qkv_.data() + fresh_cell(i + r) * padded;
        for (int64_t part = 0; part < 3 * s.H; ++part) load_row(from + part * s.D, 1, s.D, to + part * rows);
      }
    }
    if (all) {
      attend<NV, S, false>(block, c.neighbors.block(b_, 0), nullptr, s.N);
    } else {
      front_.advance(changed_);
      attend<NV, S, true>(block, front_.lists.data(), front_.active.data(), static_cast<int64_t>(front_.active.size()));
    }
    const int64_t count = all ? s.N : static_cast<int64_t>(front_.active.size());
    changed_.clear();
    for (int64_t i = 0; i < count; i += kTileRows) {
      const int64_t n = std::min(kTileRows, count - i), n1 = block.out.stride, n2 = block.contract.stride;
      A* const heads = attended_.data() + i * d;
      for (int64_t k = 0; gates != nullptr && k < n * d; ++k) heads[k] *= gates[k / s.D % s.H];
      block.out.apply(heads, d, n, first_.data());
      for (int64_t r = 0; r < n; ++r) {
        input(cell_of(i + r), added, input_.data());
        block.norm1.apply(first_.data() + r * n1, input_.data(), first_.data() + r * n1);
      }
      block.expand.apply(first_.data(), n1, n, wide_.data());
#pragma omp simd
      for (int64_t j = 0; j < n * block.expand.stride; ++j) wide_[j] = wide_[j] < 0 ? A(0) : wide_[j];  // NaN stays
      block.contract.apply(wide_.data(), block.expand.stride, n, second_.data());
      for (int64_t r = 0; r < n; ++r) {
        A *const from = second_.data() + r * n2, *const to = x_ + cell_of(i + r) * d;
        block.norm2.apply(from, first_.data() + r * n1, c.settles() ? from : to);
        if (c.settles()) settle(from, to, cell_of(i + r));
      }
    }
  }

  void settle(const A* from, A* to, int64_t cell) {
    int moved = 0;  // NaN counts as moved
    for (int64_t j = 0; j < d; ++j) moved |= !(std::abs(from[j] - to[j]) <= c.tolerance);
    if (!moved) return;
    changed_.push_back(static_cast<int32_t>(cell));
    if (sum_valid_) {
      for (int64_t j = 0; j < d; ++j) sum_[j] += static_cast<double>(from[j]) - to[j];
    }
    std::copy(from, from + d, to);
  }

  // The heads of `count` cells, in the order of the list, to attended_.
  template <int NV, int S, bool listed>
  void attend(const PassBlock& block, const int32_t* lists, const int32_t* cells, int64_t count) {
    const int64_t rows = s.N * padded, table = s.slots() * padded;
    for (int64_t h = 0; h < s.H; ++h) {
      const auto part = [&](int64_t which) { return Rows<A>{qkv_.data() + (which * s.H + h) * rows, padded}; };
      const Head<A, NV, S, listed> head{s, vectors_for<A>(s.D), padded, part(0), part(1), part(2),
                                        block.bias.data() + h * s.slots(), block.key_offset.data() + h * table,
                                        block.value_offset.data() + h * table, lists, attention_scale<A>(s.D), count,
                                        cells};
      head.forward(attended_.data() + h * s.D, d, nullptr, scores_.data());
    }
  }
};

}  // namespace poh
