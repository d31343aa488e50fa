// The layers of a pass without a graph and the block they make up, float32: weights are made ready once, rows are many.
#pragma once

#include <vector>

#include "neighbor_attention/cpu_lanes.h"

namespace poh {

// A linear layer's weight [out, in] in panels of columns, zeros beyond `out`.
class Linear {
  using A = float;
  static constexpr int64_t W = kLanes<A>;
  static constexpr int kPanel = 3;                 // vectors of outputs at a time
  static constexpr int kRows = W == 16 ? 8 : 4;    // rows at a time: accumulators in registers
  static constexpr int64_t kColumns = kPanel * W;  // outputs of a panel

 public:
  int64_t in, out, stride;

  // Reads weight [out, in], then bias [out] if there is one, and leaves `from` behind them.
  Linear(const A*& from, int64_t in_, int64_t out_, bool has_bias = true)
      : in(in_), out(out_), stride((out_ + kColumns - 1) / kColumns * kColumns),
        panels_(static_cast<size_t>(stride * in_), A(0)), bias_(static_cast<size_t>(stride), A(0)) {
    for (int64_t o = 0; o < out; ++o) {
      A* const to = panels_.data() + o / kColumns * kColumns * in + o % kColumns;
      for (int64_t i = 0; i < in; ++i) to[i * kColumns] = from[o * in + i];
    }
    from += in * out;
    if (!has_bias) return;
    std::copy(from, from + out, bias_.begin());
    from += out;
  }

  // y[rows, stride] = x[rows, x_stride] weight^T + bias
  void apply(const A* x, int64_t x_stride, int64_t rows, A* y) const {
    if (rows == 1) return few<1>(x, x_stride, 1, y);
    for (int64_t first = 0; first < rows; first += kRows) {
      few<kRows>(x + first * x_stride, x_stride, std::min<int64_t>(rows - first, kRows), y + first * stride);
    }
  }

 private:
  std::vector<A> panels_, bias_;

  template <int R>
  void few(const A* x, int64_t x_stride, int64_t rows, A* y) const {
    const A* row[R];
    for (int r = 0; r < R; ++r) row[r] = x + std::min<int64_t>(r, rows - 1) * x_stride;
    for (int64_t column = 0; column < stride; column += kColumns) {
      const A* const panel = panels_.data() + column * in;
      Vector<A> sum[R][kPanel];
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < kPanel; ++v) sum[r][v] = load(bias_.data() + column + v * W);
      }
      for (int64_t i = 0; i < in; ++i) {
        Vector<A> w[kPanel];
        for (int v = 0; v < kPanel; ++v) w[v] = load(panel + i * kColumns + v * W);
        for (int r = 0; r < R; ++r) {
          for (int v = 0; v < kPanel; ++v) sum[r][v] += w[v] * row[r][i];
        }
      }
      for (int r = 0; r < R && r < rows; ++r) {
        for (int v = 0; v < kPanel; ++v) store(y + r * stride + column + v * W, sum[r][v]);
      }
    }
  }
};

class LayerNorm {
  using A = float;
  std::vector<A> gain_, shift_;
  A eps_;

 public:
  LayerNorm(const A*& from, int64_t d, double eps)
      : gain_(from, from + d), shift_(from + d, from + 2 * d), eps_(static_cast<A>(eps)) {
    from += 2 * d;
  }

  // to = norm(x + added), all of them rows that may be the same
  void apply(const A* x, const A* added, A* to) const {
    const int64_t d = static_cast<int64_t>(gain_.size());
    A sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < d; ++j) {
      to[j] = x[j] + added[j];
      sum += to[j];
    }
    const A mean = sum / static_cast<A>(d);
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < d; ++j) squares += (to[j] - mean) * (to[j] - mean);
    const A scale = A(1) / std::sqrt(squares / static_cast<A>(d) + eps_);
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) to[j] = (to[j] - mean) * scale * gain_[j] + shift_[j];
  }
};

// The weights of a block in the order of poh_ext/ops/planner_inference.py, made ready.
struct PassBlock {
  using A = float;
  static constexpr int64_t W = kLanes<A>;

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

  PassBlock(const A* from, const AttentionShape& s, int64_t d, int64_t ff, double eps)
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

// The router of a PoH planner for one maze: Router in poh_ext/models/blocks.py with pooled routing, without a graph.
class PassRouter {
  using A = float;

  // h <- new + update (h - new), as GRUCell in poh_ext/models/blocks.py
  struct Cell {
    Linear from_input, from_state;
    LayerNorm norm;

    Cell(const A*& from, int64_t in, int64_t c, double eps)
        : from_input(from, in, 3 * c), from_state(from, c, 3 * c), norm(from, c, eps) {}

    void step(const A* input, A* h, A* room) const {
      const int64_t c = from_state.in;
      A *const x = room, *const g = room + from_input.stride;
      from_input.apply(input, from_input.in, 1, x);
      from_state.apply(h, c, 1, g);
      const A* const zero = zeros_.data();
      for (int64_t j = 0; j < c; ++j) {
        const A reset = sigmoid(x[j] + g[j]), update = sigmoid(x[c + j] + g[c + j]);
        const A fresh = fast_tanh(x[2 * c + j] + reset * g[2 * c + j]);
        h[j] = fresh + update * (h[j] - fresh);
      }
      norm.apply(h, zero, h);
    }

   private:
    std::vector<A> zeros_ = std::vector<A>(static_cast<size_t>(from_state.in), A(0));
    static A sigmoid(A x) { return A(0.5) + A(0.5) * fast_tanh(A(0.5) * x); }
  };

  Linear project_;
  Cell slow_, fast_;
  Linear mix_, logits_;
  A inverse_temperature_;
  int64_t c_, heads_;

 public:
  // Reads the parameters in the order of poh_ext/ops/planner_inference.py.
  PassRouter(const A*& from, int64_t d, int64_t c, int64_t heads, double temperature, double eps)
      : project_(from, d, c), slow_(from, c, c, eps), fast_(from, 2 * c, c, eps), mix_(from, c, c, false),
        logits_(from, c, heads), inverse_temperature_(static_cast<A>(1 / temperature)), c_(c), heads_(heads) {}

  static int64_t parameters(int64_t d, int64_t c, int64_t heads) {
    const int64_t cells = (3 * c * c + 3 * c) + 2 * c + (6 * c * c + 3 * c) + 2 * c + 2 * (3 * c * c + 3 * c);
    return c * d + c + cells + c * c + heads * c + heads;
  }
  int64_t room() const { return 2 * c_ + project_.stride + mix_.stride + logits_.stride + 2 * fast_.from_input.stride; }

  // weights[heads] of the mean token [d]; state [2 c] is the slow cell, then the fast one.
  void step(const A* mean, bool slow_turn, A* state, A* weights, A* room) const {
    A *const slow = state, *const fast = state + c_;
    A *const u = room, *const both = u + project_.stride, *const mixed = both + 2 * c_;
    A *const scores = mixed + mix_.stride, *const gates = scores + logits_.stride;
    project_.apply(mean, project_.in, 1, u);
    if (slow_turn) slow_.step(u, slow, gates);
    std::copy(u, u + c_, both);
    std::copy(slow, slow + c_, both + c_);
    fast_.step(both, fast, gates);
    mix_.apply(slow, c_, 1, mixed);
    for (int64_t j = 0; j < c_; ++j) mixed[j] += fast[j];
    logits_.apply(mixed, c_, 1, scores);
    A max = -std::numeric_limits<A>::infinity(), sum = 0;
    for (int64_t h = 0; h < heads_; ++h) max = scores[h] > max ? scores[h] : max;
    for (int64_t h = 0; h < heads_; ++h) sum += weights[h] = exp_nonpositive((scores[h] - max) * inverse_temperature_);
    for (int64_t h = 0; h < heads_; ++h) weights[h] /= sum;
  }
};

}  // namespace poh
