// A maze on its way through the passes, and which of its cells a pass computes once some of them no longer change: what
// a cell does depends on itself, its candidates and the weights of the heads alone, so a cell none of which changed would
// only repeat itself. What is left is the front of the news, some tens of cells however large the maze is.
#pragma once

#include <numeric>

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

// A maze on its way, and what the threads work in that take it through a pass together: tiles of its cells, which are
// the same whatever their number.
class PassMaze {
  using A = float;
  static constexpr int64_t W = kLanes<A>;

  // What a thread works in.
  struct Room {
    std::vector<A> scores, input, heads, wide, first, second;

    explicit Room(const PassCall& c)
        : scores((c.shape.slots() + 1) * W + vectors_for<A>(c.shape.D) * W), input(kTileRows * c.d),
          heads(kTileRows * c.d + W),  // the last head of a row is stored as whole vectors: not into another's tile
          wide(kTileRows * std::max(c.blocks.front().qkv.stride, c.blocks.front().expand.stride)),
          first(kTileRows * c.blocks.front().out.stride), second(kTileRows * c.blocks.front().contract.stride) {}
  };

 public:
  static constexpr int64_t kTileRows = 32;  // whole vectors of cells

  PassMaze(const PassCall& call, int64_t threads)
      : c(call), s(call.shape), d(call.d), padded(vectors_for<A>(s.D) * W), qkv_(3 * s.H * s.N * padded + W),
        renewed_(c.settles() ? s.N * d : 0), rooms_(threads, Room(call)), front_(call.neighbors, call.shape), every_(s.N) {
    std::iota(every_.begin(), every_.end(), 0);
    gates_.resize(s.H);
    if (c.settles()) moved_.resize(s.N);
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
  std::vector<A> qkv_, renewed_, gates_, router_room_;
  std::vector<Room> rooms_;
  PassFront front_;
  std::vector<int32_t> every_;    // cell
  std::vector<int32_t> changed_;  // by the last pass
  std::vector<uint8_t> moved_;    // which of the cells that a pass computed moved by more than the tolerance
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

  // f(first, rows, room) for tiles of `count` rows, by as many threads as have two of them.
  template <class F>
  void tiles(int64_t count, const F& f) {
    const int64_t all = (count + kTileRows - 1) / kTileRows;
    const int64_t threads = std::clamp<int64_t>(all / 2, 1, static_cast<int64_t>(rooms_.size()));
    parallel(threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t tile = all * t / threads; tile < all * (t + 1) / threads; ++tile) {
          const int64_t first = tile * kTileRows;
          f(first, std::min(kTileRows, count - first), rooms_[t]);
        }
      }
    });
  }

  // Through a block: of all cells or of the front; q, k and v of the cells that changed, or of all if they are stale.
  template <int NV, int S>
  void pass(const PassBlock& block, const A* added, const A* gates, bool all, bool stale) {
    const int64_t rows = s.N * padded;
    const std::vector<int32_t>& renewed = stale ? every_ : changed_;
    tiles(static_cast<int64_t>(renewed.size()), [&](int64_t i, int64_t n, Room& room) {
      for (int64_t r = 0; r < n; ++r) input(renewed[i + r], added, room.input.data() + r * d);
      block.qkv.apply(room.input.data(), d, n, room.wide.data());
      for (int64_t r = 0; r < n; ++r) {
        const A* const from = room.wide.data() + r * block.qkv.stride;
        A* const to = qkv_.data() + renewed[i + r] * padded;
        for (int64_t part = 0; part < 3 * s.H; ++part) load_row(from + part * s.D, 1, s.D, to + part * rows);
      }
    });
    if (!all) front_.advance(changed_);
    const std::vector<int32_t>& active = all ? every_ : front_.active;
    const int32_t* const lists = all ? c.neighbors.block(b_, 0) : front_.lists.data();
    tiles(static_cast<int64_t>(active.size()), [&](int64_t i, int64_t n, Room& room) {
      const int64_t n1 = block.out.stride, n2 = block.contract.stride;
      A *const heads = room.heads.data(), *const first = room.first.data(), *const wide = room.wide.data();
      attend<NV, S>(block, lists + i * s.C, active.data() + i, n, heads, room.scores.data());
      for (int64_t k = 0; gates != nullptr && k < n * d; ++k) heads[k] *= gates[k / s.D % s.H];
      block.out.apply(heads, d, n, first);
      for (int64_t r = 0; r < n; ++r) {
        input(active[i + r], added, room.input.data());
        block.norm1.apply(first + r * n1, room.input.data(), first + r * n1);
      }
      block.expand.apply(first, n1, n, wide);
#pragma omp simd
      for (int64_t j = 0; j < n * block.expand.stride; ++j) wide[j] = wide[j] < 0 ? A(0) : wide[j];  // NaN stays
      block.contract.apply(wide, block.expand.stride, n, room.second.data());
      for (int64_t r = 0; r < n; ++r) {
        const A* const from = room.second.data() + r * n2;
        A* const cell = x_ + active[i + r] * d;
        A* const to = c.settles() ? renewed_.data() + (i + r) * d : cell;
        block.norm2.apply(from, first + r * n1, to);
        if (c.settles()) moved_[i + r] = moved(to, cell);
      }
    });
    if (c.settles()) settle(active);
  }

  bool moved(const A* from, const A* to) const {
    int moved = 0;  // NaN counts as moved
    for (int64_t j = 0; j < d; ++j) moved |= !(std::abs(from[j] - to[j]) <= c.tolerance);
    return moved;
  }

  // Cells that moved take what `renewed_` holds now; in the order of the list, on which the sum depends.
  void settle(const std::vector<int32_t>& active) {
    changed_.clear();
    for (size_t i = 0; i < active.size(); ++i) {
      if (!moved_[i]) continue;
      const A* const from = renewed_.data() + static_cast<int64_t>(i) * d;
      A* const to = x_ + active[i] * d;
      changed_.push_back(active[i]);
      if (sum_valid_) {
        for (int64_t j = 0; j < d; ++j) sum_[j] += static_cast<double>(from[j]) - to[j];
      }
      std::copy(from, from + d, to);
    }
  }

  // The heads of `count` cells, in the order of the list.
  template <int NV, int S>
  void attend(const PassBlock& block, const int32_t* lists, const int32_t* cells, int64_t count, A* out, A* room) const {
    const int64_t rows = s.N * padded, table = s.slots() * padded;
    for (int64_t h = 0; h < s.H; ++h) {
      const auto part = [&](int64_t which) { return Rows<A>{qkv_.data() + (which * s.H + h) * rows, padded}; };
      const Head<A, NV, S, true> head{s, vectors_for<A>(s.D), padded, part(0), part(1), part(2),
                                      block.bias.data() + h * s.slots(), block.key_offset.data() + h * table,
                                      block.value_offset.data() + h * table, lists, attention_scale<A>(s.D), count,
                                      cells};
      head.forward(out + h * s.D, d, nullptr, room);
    }
  }
};

}  // namespace poh
