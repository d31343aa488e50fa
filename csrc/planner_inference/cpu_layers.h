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

}  // namespace poh
