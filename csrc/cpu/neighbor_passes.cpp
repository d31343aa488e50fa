// Many passes of post-norm transformer blocks whose heads are all neighbour attention, without a graph: each thread
// takes whole mazes through all passes, so that a maze stays in its cache, and every product is followed by what is
// done with its rows while they are there.
#include <torch/csrc/stable/library.h>

#include "cpu/neighbor_attention_head.h"

namespace poh {
namespace {

using A = float;
constexpr int64_t W = kLanes<A>;
constexpr int kPanel = 3;                       // vectors of outputs at a time
constexpr int kRows = W == 16 ? 8 : 4;          // rows at a time: accumulators in registers
constexpr int64_t kColumns = kPanel * W;        // outputs of a panel
constexpr int64_t kTileRows = 32;               // rows of all that follows the attention

int64_t padded_to_panels(int64_t n) { return (n + kColumns - 1) / kColumns * kColumns; }

// A linear layer's weight [out, in] in panels of columns, zeros beyond `out`.
struct Linear {
  int64_t in, out, stride;
  std::vector<A> panels, bias;

  Linear(const A*& from, int64_t in_, int64_t out_)
      : in(in_), out(out_), stride(padded_to_panels(out_)), panels(static_cast<size_t>(stride * in_), A(0)),
        bias(static_cast<size_t>(stride), A(0)) {
    for (int64_t o = 0; o < out; ++o) {
      A* const to = panels.data() + o / kColumns * kColumns * in + o % kColumns;
      for (int64_t i = 0; i < in; ++i) to[i * kColumns] = from[o * in + i];
    }
    from += in * out;
    std::copy(from, from + out, bias.begin());
    from += out;
  }

  // y[rows, stride] = x[rows, x_stride] weight^T + bias
  void apply(const A* x, int64_t x_stride, int64_t rows, A* y) const {
    for (int64_t first = 0; first < rows; first += kRows) {
      const A* row[kRows];
      for (int r = 0; r < kRows; ++r) row[r] = x + std::min<int64_t>(first + r, rows - 1) * x_stride;
      for (int64_t column = 0; column < stride; column += kColumns) {
        const A* const panel = panels.data() + column * in;
        Vector<A> sum[kRows][kPanel];
        for (int r = 0; r < kRows; ++r) {
          for (int v = 0; v < kPanel; ++v) sum[r][v] = load(bias.data() + column + v * W);
        }
        for (int64_t i = 0; i < in; ++i) {
          Vector<A> w[kPanel];
          for (int v = 0; v < kPanel; ++v) w[v] = load(panel + i * kColumns + v * W);
          for (int r = 0; r < kRows; ++r) {
            for (int v = 0; v < kPanel; ++v) sum[r][v] += w[v] * row[r][i];
          }
        }
        for (int r = 0; r < kRows && first + r < rows; ++r) {
          for (int v = 0; v < kPanel; ++v) store(y + (first + r) * stride + column + v * W, sum[r][v]);
        }
      }
    }
  }
};

struct Norm {
  std::vector<A> gain, shift;
  A eps;

  Norm(const A*& from, int64_t d, double eps_) : gain(from, from + d), shift(from + d, from + 2 * d), eps(static_cast<A>(eps_)) {
    from += 2 * d;
  }

  // to = norm(x + added)
  void apply(const A* x, const A* added, A* to) const {
    const int64_t d = static_cast<int64_t>(gain.size());
    A sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < d; ++j) {
      to[j] = x[j] + added[j];
      sum += to[j];
    }
    const A mean = sum / static_cast<A>(d);
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < d; ++j) squares += (to[j] - mean) * (to[j] - mean);
    const A scale = A(1) / std::sqrt(squares / static_cast<A>(d) + eps);
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) to[j] = (to[j] - mean) * scale * gain[j] + shift[j];
  }
};

// The weights of a block in the order of poh_ext/ops/neighbor_passes.py, made ready.
struct Block {
  Linear qkv;
  std::vector<A> bias, key_offset, value_offset;
  Linear out;
  Norm norm1;
  Linear expand, contract;
  Norm norm2;

  // Each row of a table of offsets is filled up to whole vectors.
  static std::vector<A> table(const A*& from, int64_t rows, int64_t width, int64_t padded) {
    std::vector<A> to(static_cast<size_t>(rows * padded), A(0));
    for (int64_t r = 0; r < rows; ++r) std::copy(from + r * width, from + (r + 1) * width, to.data() + r * padded);
    from += rows * width;
    return to;
  }
  Block(const A*& from, int64_t d, int64_t ff, int64_t rows, int64_t d_head, double eps)
      : qkv(from, d, 3 * d),
        bias(table(from, rows, 1, 1)),
        key_offset(table(from, rows, d_head, vectors_for<A>(d_head) * W)),
        value_offset(table(from, rows, d_head, vectors_for<A>(d_head) * W)),
        out(from, d, d),
        norm1(from, d, eps),
        expand(from, d, ff),
        contract(from, ff, d),
        norm2(from, d, eps) {}
};

// What a thread works in.
struct Room {
  std::vector<A> qkv, attended, rows, scores, first, wide, second;
  Room(const AttentionShape& s, int64_t d, const Block& block)
      : qkv(s.N * block.qkv.stride), attended(s.N * d), rows(3 * s.N * vectors_for<A>(s.D) * W + W),
        scores(s.slots() * W + vectors_for<A>(s.D) * W), first(kTileRows * block.out.stride),
        wide(kTileRows * block.expand.stride), second(kTileRows * block.contract.stride) {}
};

// x[N, d] of maze b through one block, in place; tokens (or null) are added first.
template <int NV, int S>
void run_block(const Block& block, const AttentionShape& shape, const Neighbors& neighbors, int64_t b, A* x,
               const A* tokens, Room& room) {
  const int64_t d = shape.H * shape.D, stride = block.qkv.stride;
  for (int64_t i = 0; i < shape.N; i += kTileRows) {
    const int64_t count = std::min(kTileRows, shape.N - i);
    if (tokens != nullptr) add_scaled(x + i * d, tokens + i * d, A(1), count * d);
    block.qkv.apply(x + i * d, d, count, room.qkv.data() + i * stride);
  }
  const int64_t padded = vectors_for<A>(shape.D) * W, part = shape.N * padded, table = shape.slots() * padded;
  for (int64_t h = 0; h < shape.H; ++h) {
    const auto rows = [&](int64_t which) {
      const Strided<A> from(room.qkv.data() + which * d, 0, shape.D, stride);
      return rows_of<A, A>(from, 0, h, shape, room.rows.data() + which * part);
    };
    const Head<A, NV, S> head{shape, vectors_for<A>(shape.D), padded, rows(0), rows(1), rows(2),
                              block.bias.data() + h * shape.slots(), block.key_offset.data() + h * table,
                              block.value_offset.data() + h * table, neighbors, b, attention_scale<A>(shape.D)};
    head.forward(room.attended.data() + h * shape.D, d, nullptr, room.scores.data());
  }
  A *const first = room.first.data(), *const wide = room.wide.data(), *const second = room.second.data();
  for (int64_t i = 0; i < shape.N; i += kTileRows) {
    const int64_t count = std::min(kTileRows, shape.N - i), n1 = block.out.stride, n2 = block.contract.stride;
    block.out.apply(room.attended.data() + i * d, d, count, first);
    for (int64_t r = 0; r < count; ++r) block.norm1.apply(first + r * n1, x + (i + r) * d, first + r * n1);
    block.expand.apply(first, n1, count, wide);
#pragma omp simd
    for (int64_t j = 0; j < count * block.expand.stride; ++j) wide[j] = wide[j] < 0 ? A(0) : wide[j];  // NaN stays
    block.contract.apply(wide, block.expand.stride, count, second);
    for (int64_t r = 0; r < count; ++r) block.norm2.apply(second + r * n2, first + r * n1, x + (i + r) * d);
  }
}

Tensor neighbor_passes(const Tensor& x_in, const Tensor& tokens_in, const Tensor& candidates, const Tensor& weights_in,
                       int64_t heads, int64_t d_ff, int64_t passes, bool inject, bool inject_first, double eps) {
  const Tensor tokens = packed(tokens_in), weights = packed(weights_in);
  check_tensor(weights, "weights", ScalarType::Float, 2);
  check_tensor(tokens, "tokens", ScalarType::Float, 3);
  check(x_in.is_cpu() && x_in.dim() == 3 && x_in.scalar_type() == ScalarType::Float, "x must be float32 [B, N, d]");
  for (int64_t i = 0; i < 3; ++i) check(tokens.size(i) == x_in.size(i), "tokens must have the shape of x");
  const int64_t B = x_in.size(0), N = x_in.size(1), d = x_in.size(2), depth = weights.size(0);
  check(heads >= 1 && d >= 1 && d % heads == 0, "x must have a multiple of ", heads, " features, got ", d);
  check(d_ff >= 1 && passes >= 1, "d_ff and passes must be at least 1");
  check(candidates.dim() == 3, "candidates must have shape [B, N, C]");
  const AttentionShape shape{B, heads, N, d / heads, candidates.size(2)};
  const int64_t table = heads * shape.slots();
  check(weights.size(1) == 4 * d * (d + 1) + table * (1 + 2 * shape.D) + 2 * d * d_ff + d_ff + d + 4 * d,
        "weights must have a row for each block, of all its parameters");
  std::vector<Block> blocks;
  for (int64_t i = 0; i < depth; ++i) {
    const A* from = data<A>(weights) + i * weights.size(1);
    blocks.emplace_back(from, d, d_ff, table, shape.D, eps);
  }
  const Neighbors neighbors(candidates, shape, W);
  const Tensor out = torch::stable::clone(packed(x_in));
  with_sizes(vectors_for<A>(shape.D), shape.slots(), [&](auto nv, auto s) {
    parallel_blocks(
        N > 0 && depth > 0 ? B : 0, 1, [&] { return Room(shape, d, blocks.front()); },
        [&](int64_t begin, int64_t end, Room& room) {
          for (int64_t b = begin; b < end; ++b) {
            A* const x = data<A>(out) + b * N * d;
            for (int64_t pass = 0; pass < passes; ++pass) {
              const A* added = inject && (pass > 0 || inject_first) ? data<A>(tokens) + b * N * d : nullptr;
              for (const Block& block : blocks) {
                run_block<nv(), s()>(block, shape, neighbors, b, x, added, room);
                added = nullptr;
              }
            }
          }
        });
  });
  return out;
}

}  // namespace
}  // namespace poh

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) { m.impl("neighbor_passes", TORCH_BOX(&poh::neighbor_passes)); }
