// Many passes of post-norm transformer blocks whose heads are all neighbour attention, without a graph: each thread
// takes whole mazes through all passes, so that a maze stays in its cache, and every product is followed by what is
// done with its rows while they are there.
//
// With a tolerance, a cell that moved by no more keeps its state. What a cell does depends on itself, its candidates and
// the weights of the heads alone, so a cell none of which changed would only repeat itself: it is not computed. What is
// left of a maze is the front of the news, some tens of cells however large it is.
#include <torch/csrc/stable/library.h>

#include "cpu/neighbor_attention_head.h"
#include "cpu/pass_router.h"

namespace poh {
namespace {

using A = float;
constexpr int64_t W = kLanes<A>;
constexpr int64_t kTileRows = 32;  // rows of all but the attention

// The weights of a block in the order of poh_ext/ops/neighbor_passes.py, made ready.
struct Block {
  Linear qkv;
  std::vector<A> bias, key_offset, value_offset;
  Linear out;
  LayerNorm norm1;
  Linear expand, contract;
  LayerNorm norm2;
  std::vector<A> head_scale;

  // Each row of a table of offsets is filled up to whole vectors.
  static std::vector<A> table(const A*& from, int64_t rows, int64_t width, int64_t padded) {
    std::vector<A> to(static_cast<size_t>(rows * padded), A(0));
    for (int64_t r = 0; r < rows; ++r) std::copy(from + r * width, from + (r + 1) * width, to.data() + r * padded);
    from += rows * width;
    return to;
  }
  Block(const A* from, const AttentionShape& s, int64_t d, int64_t ff, double eps)
      : qkv(from, d, 3 * d),
        bias(table(from, s.H * s.slots(), 1, 1)),
        key_offset(table(from, s.H * s.slots(), s.D, vectors_for<A>(s.D) * W)),
        value_offset(table(from, s.H * s.slots(), s.D, vectors_for<A>(s.D) * W)),
        out(from, d, d),
        norm1(from, d, eps),
        expand(from, d, ff),
        contract(from, ff, d),
        norm2(from, d, eps),
        head_scale(from, from + s.H) {}

  static int64_t parameters(const AttentionShape& s, int64_t d, int64_t ff) {
    return 4 * d * (d + 1) + s.H * s.slots() * (1 + 2 * s.D) + 2 * d * ff + ff + d + 4 * d + s.H;
  }
};

// What all mazes of a call share.
struct Call {
  AttentionShape shape;
  int64_t d, step, passes, slow_period;
  bool inject;
  A tolerance;
  const Neighbors& neighbors;
  std::vector<Block> blocks;
  std::vector<PassRouter> routers;  // one for each block, or none
  int64_t router_state;             // numbers of a router's state: slow, fast, the weights in use

  bool settles() const { return tolerance > 0; }
};

// A maze on its way, and what a thread works in.
class Maze {
 public:
  explicit Maze(const Call& call)
      : c(call), s(call.shape), d(call.d), padded(vectors_for<A>(s.D) * W), qkv_(3 * s.H * s.N * padded + W),
        attended_(s.N * d), scores_((s.slots() + 1) * W + padded), input_(kTileRows * d) {
    const Block& block = c.blocks.front();
    wide_.resize(kTileRows * std::max(block.qkv.stride, block.expand.stride));
    first_.resize(kTileRows * block.out.stride);
    second_.resize(kTileRows * block.contract.stride);
    gates_.resize(s.H);
    if (!c.routers.empty()) router_room_.resize(c.routers.front().room() + d + s.H);
    if (!c.settles()) return;
    seen_.assign(s.N, -1);
    readers_from_.resize(s.N + 1);
  }

  // x [N, d] in place; states and weights are those of this maze, `stride` numbers from one block to the next.
  template <int NV, int S>
  void run(int64_t b, A* x, const A* tokens, A* router_states, int64_t state_stride, A* weights, int64_t weight_stride) {
    b_ = b, x_ = x;
    if (c.settles()) find_readers();
    sum_valid_ = false;
    token_sum_.clear();
    bool all = true;
    for (int64_t p = c.step; p < c.step + c.passes; ++p) {
      const A* added = c.inject && p > 0 ? tokens : nullptr;
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
        pass<NV, S>(c.blocks[i], added, gates, all);
      }
      all = !c.settles() || (c.inject && p == 0);  // the second pass is the first to see the tokens again
      if (!all && c.routers.empty() && changed_.empty()) return;  // a fixed point
    }
  }

 private:
  const Call& c;
  const AttentionShape& s;
  int64_t d, padded;
  std::vector<A> qkv_, attended_, scores_, input_, wide_, first_, second_, gates_, router_room_;
  std::vector<int32_t> changed_, active_, lists_, seen_, readers_from_, readers_;
  std::vector<double> sum_, token_sum_;
  bool sum_valid_ = false;
  int32_t turn_ = 0;
  int64_t b_ = 0;
  A* x_ = nullptr;

  int32_t neighbor(int64_t cell, int64_t slot) const {
    return c.neighbors.block(b_, cell / W)[slot * W + cell % W];
  }

  // readers_[readers_from_[j] ...]: the cells that have j among their candidates, and so change with it.
  void find_readers() {
    std::fill(readers_from_.begin(), readers_from_.end(), 0);
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

  // The cells that changed and their readers, with their lists in blocks of W.
  void find_active() {
    active_.clear();
    ++turn_;
    const auto add = [&](int32_t cell) {
      if (seen_[cell] == turn_) return;
      seen_[cell] = turn_;
      active_.push_back(cell);
    };
    for (const int32_t j : changed_) {
      add(j);
      for (int32_t r = readers_from_[j]; r < readers_from_[j + 1]; ++r) add(readers_[r]);
    }
    const int64_t n = static_cast<int64_t>(active_.size());
    lists_.assign((n + W - 1) / W * W * s.C, -1);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t k = 0; k < s.C; ++k) lists_[(i / W * s.C + k) * W + i % W] = neighbor(active_[i], k);
    }
  }

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

  template <int NV, int S>
  void pass(const Block& block, const A* added, const A* gates, bool all) {
    const int64_t rows = s.N * padded;
    const auto cell_of = [&](const std::vector<int32_t>& list, int64_t i) { return all ? i : list[i]; };
    const int64_t fresh = all ? s.N : static_cast<int64_t>(changed_.size());
    for (int64_t i = 0; i < fresh; i += kTileRows) {
      const int64_t n = std::min(kTileRows, fresh - i);
      for (int64_t r = 0; r < n; ++r) input(cell_of(changed_, i + r), added, input_.data() + r * d);
      block.qkv.apply(input_.data(), d, n, wide_.data());
      for (int64_t r = 0; r < n; ++r) {
        const A* const from = wide_.data() + r * block.qkv.stride;
        A* const to = qkv_.data() + cell_of(changed_, i + r) * padded;
        for (int64_t part = 0; part < 3 * s.H; ++part) load_row(from + part * s.D, 1, s.D, to + part * rows);
      }
    }
    if (all) {
      attend<NV, S, false>(block, c.neighbors.block(b_, 0), nullptr, s.N);
    } else {
      find_active();
      attend<NV, S, true>(block, lists_.data(), active_.data(), static_cast<int64_t>(active_.size()));
    }
    const int64_t count = all ? s.N : static_cast<int64_t>(active_.size());
    changed_.clear();
    for (int64_t i = 0; i < count; i += kTileRows) {
      const int64_t n = std::min(kTileRows, count - i), n1 = block.out.stride, n2 = block.contract.stride;
      A* const heads = attended_.data() + i * d;
      for (int64_t k = 0; gates != nullptr && k < n * d; ++k) heads[k] *= gates[k / s.D % s.H];
      block.out.apply(heads, d, n, first_.data());
      for (int64_t r = 0; r < n; ++r) {
        input(cell_of(active_, i + r), added, input_.data());
        block.norm1.apply(first_.data() + r * n1, input_.data(), first_.data() + r * n1);
      }
      block.expand.apply(first_.data(), n1, n, wide_.data());
#pragma omp simd
      for (int64_t j = 0; j < n * block.expand.stride; ++j) wide_[j] = wide_[j] < 0 ? A(0) : wide_[j];  // NaN stays
      block.contract.apply(wide_.data(), block.expand.stride, n, second_.data());
      for (int64_t r = 0; r < n; ++r) {
        A *const from = second_.data() + r * n2, *const to = x_ + cell_of(active_, i + r) * d;
        block.norm2.apply(from, first_.data() + r * n1, c.settles() ? from : to);
        if (c.settles()) settle(from, to, cell_of(active_, i + r));
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
  void attend(const Block& block, const int32_t* lists, const int32_t* cells, int64_t count) {
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

std::tuple<Tensor, Tensor, Tensor> neighbor_passes(
    const Tensor& x_in, const Tensor& tokens_in, const Tensor& candidates, const Tensor& weights_in, int64_t heads,
    int64_t d_ff, int64_t step, int64_t passes, bool inject, double eps, double tolerance,
    const std::optional<Tensor>& routers_in, const std::optional<Tensor>& router_state, int64_t slow_period,
    double temperature) {
  const Tensor tokens = packed(tokens_in), weights = packed(weights_in);
  check_tensor(weights, "weights", ScalarType::Float, 2);
  check_tensor(tokens, "tokens", ScalarType::Float, 3);
  check(x_in.is_cpu() && x_in.dim() == 3 && x_in.scalar_type() == ScalarType::Float, "x must be float32 [B, N, d]");
  for (int64_t i = 0; i < 3; ++i) check(tokens.size(i) == x_in.size(i), "tokens must have the shape of x");
  const int64_t B = x_in.size(0), N = x_in.size(1), d = x_in.size(2), depth = weights.size(0);
  check(heads >= 1 && d >= 1 && d % heads == 0, "x must have a multiple of ", heads, " features, got ", d);
  check(d_ff >= 1 && passes >= 1, "d_ff and passes must be at least 1");
  check(step >= 0, "step must be at least 0, got ", step);
  check(tolerance == 0 || (tolerance > 0 && depth == 1), "tolerance must be 0, or positive with one block");
  check(candidates.dim() == 3, "candidates must have shape [B, N, C]");
  const AttentionShape shape{B, heads, N, d / heads, candidates.size(2)};
  check(weights.size(1) == Block::parameters(shape, d, d_ff),
        "weights must have a row for each block, of all its parameters");
  const Neighbors neighbors(candidates, shape, W);
  Call call{shape, d, step, passes, slow_period, inject, static_cast<A>(tolerance), neighbors, {}, {}, 0};
  for (int64_t i = 0; i < depth; ++i) {
    call.blocks.emplace_back(data<A>(weights) + i * weights.size(1), shape, d, d_ff, eps);
  }
  const Tensor out = torch::stable::clone(packed(x_in));
  Tensor state = new_empty({0}, ScalarType::Float), used = new_empty({0}, ScalarType::Float);
  check(routers_in.has_value() == router_state.has_value(), "router_state must come with routers");
  if (routers_in) {
    const Tensor routers = packed(*routers_in);
    check_tensor(routers, "routers", ScalarType::Float, 2);
    check_tensor(*router_state, "router_state", ScalarType::Float, 3);
    const int64_t c = d / 2;
    call.router_state = 2 * c + heads;
    check(routers.size(0) == depth && routers.size(1) == PassRouter::parameters(d, c, heads),
          "routers must have a row for each block, of all its parameters");
    check(router_state->size(0) == depth && router_state->size(1) == B && router_state->size(2) == call.router_state,
          "router_state must be [depth, B, ", call.router_state, "]");
    check(slow_period >= 1 && temperature > 0, "slow_period and temperature must be positive");
    for (int64_t i = 0; i < depth; ++i) {
      const A* from = data<A>(routers) + i * routers.size(1);
      call.routers.emplace_back(from, d, c, heads, temperature, eps);
    }
    state = torch::stable::clone(packed(*router_state));
    used = new_empty({passes, depth, B, heads}, ScalarType::Float);
  }
  A *const x = data<A>(out), *const states = data<A>(state), *const weights_used = data<A>(used);
  with_sizes(vectors_for<A>(shape.D), shape.slots(), [&](auto nv, auto s) {
    parallel_blocks(
        N > 0 && depth > 0 ? B : 0, 1, [&] { return Maze(call); },
        [&](int64_t begin, int64_t end, Maze& maze) {
          for (int64_t b = begin; b < end; ++b) {
            maze.run<nv(), s()>(b, x + b * N * d, data<A>(tokens) + b * N * d, states + b * call.router_state,
                                B * call.router_state, weights_used + b * heads, B * heads);
          }
        });
  });
  return {out, state, used};
}

}  // namespace
}  // namespace poh

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) { m.impl("neighbor_passes", TORCH_BOX(&poh::neighbor_passes)); }
