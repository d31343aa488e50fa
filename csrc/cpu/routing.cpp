// Softmax over heads with its entropy, forward and backward, one pass each over the rows.
// A few heads: rows lie across the SIMD lanes. Many: the row does, in pieces that stay in the first cache.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/transpose.h"
#include "math/routing.h"

namespace poh {
namespace {

constexpr int64_t kPiece = 512;    // elements of a long row at a time
constexpr int64_t kGrain = 16384;  // elements a thread must have to be worth starting
constexpr int64_t kBlock = 512;    // rows summed in one piece: fixed, so that sums do not depend on threads

enum Reduction : int64_t { kMean = 0, kSum = 1, kNone = 2 };

// W rows of at most W heads, head by head: at[j * W + r] is head j of row r.
template <class A>
struct Tile {
  static constexpr int64_t W = kTile<A>;
  alignas(64) A at[W * W];

  // ahead: how many numbers there are from `from` on, of these rows and of those after them.
  template <class T>
  void load(const T* from, int64_t rows, int64_t heads, int64_t ahead) {
    if constexpr (std::is_same_v<T, A>) {
      if (rows == W && ahead >= (W - 1) * heads + W) return transpose_tile(from, heads, at, W);
    }
    alignas(64) A flat[W * W + W];
    convert(from, flat, rows * heads);
    std::fill(flat + rows * heads, flat + W * heads + W, A(0));  // idle lanes; what the last row reads beyond it
    transpose_tile(flat, heads, at, W);
  }

  template <class T>
  void store(T* to, int64_t rows, int64_t heads) const {
    if constexpr (std::is_same_v<T, A>) {
      if (rows == W && heads == W) return transpose_tile(at, W, to, W);
    }
    alignas(64) A flat[W * W + W];
    transpose_tile(at, W, flat, heads);
    convert(flat, to, rows * heads);
  }
};

// One number per row of a tile, in a register: a sum over heads held in an array would go through memory at
// every head (GCC keeps it there, whatever the order of the loops).
#pragma GCC diagnostic ignored "-Wpsabi"  // how such a vector is returned differs by target: nobody else calls these
template <class A>
struct TileRow {
  typedef A type __attribute__((vector_size(64)));
};
template <class A>
using Lanes = typename TileRow<A>::type;

template <class A>
Lanes<A> head(const Tile<A>& t, int64_t j) {
  Lanes<A> v;
  std::memcpy(&v, t.at + j * kTile<A>, sizeof v);
  return v;
}

template <class A>
Lanes<A> tile_max(const Tile<A>& z, int64_t heads) {
  Lanes<A> max = head(z, 0);
  for (int64_t j = 1; j < heads; ++j) {
    const Lanes<A> next = head(z, j);
    max = next > max ? next : max;
  }
  return max;
}

template <class A>
Lanes<A> tile_sum(const Tile<A>& p, int64_t heads) {
  Lanes<A> sum = head(p, 0);
  for (int64_t j = 1; j < heads; ++j) sum = sum + head(p, j);
  return sum;
}

template <class A>
Lanes<A> tile_dot(const Tile<A>& p, const Tile<A>& x, int64_t heads) {
  Lanes<A> dot = head(p, 0) * head(x, 0);
  for (int64_t j = 1; j < heads; ++j) dot = dot + head(p, j) * head(x, j);
  return dot;
}

// Logits to scores.
template <class A>
void tile_scores(Tile<A>& z, int64_t heads, A inverse_temperature) {
  constexpr int64_t W = kTile<A>;
  const Lanes<A> max = tile_max(z, heads);
  for (int64_t j = 0; j < heads; ++j) {
    A* row = z.at + j * W;
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) row[r] = route_score(row[r], max[r], inverse_temperature);
  }
}

// Scores to weights; returns Z per row.
template <class A>
Lanes<A> tile_softmax(const Tile<A>& s, Tile<A>& p, int64_t heads) {
  constexpr int64_t W = kTile<A>;
#pragma omp simd
  for (int64_t i = 0; i < heads * W; ++i) p.at[i] = exp_nonpositive(s.at[i]);
  const Lanes<A> sum = tile_sum(p, heads);
  Lanes<A> inverse;
  for (int64_t r = 0; r < W; ++r) inverse[r] = 1 / sum[r];
  for (int64_t j = 0; j < heads; ++j) {
    A* row = p.at + j * W;
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) row[r] *= inverse[r];
  }
  return sum;
}

// The first of the rows left, at most as many as a tile has.
template <class T, class A, class Put>
void tile_forward(const T* logits, int64_t left, int64_t heads, A inverse_temperature, T* weights, const Put& put) {
  constexpr int64_t W = kTile<A>;
  const int64_t rows = std::min(W, left);
  Tile<A> s, p;
  s.load(logits, rows, heads, left * heads);
  tile_scores(s, heads, inverse_temperature);
  const Lanes<A> sum = tile_softmax(s, p, heads), dot = tile_dot(p, s, heads);
  alignas(64) A entropy[W];
#pragma omp simd
  for (int64_t r = 0; r < W; ++r) entropy[r] = route_entropy(sum[r], dot[r]);
  for (int64_t r = 0; r < rows; ++r) put(r, entropy[r]);
  if (weights != nullptr) p.store(weights, rows, heads);
}

template <class T, class A, class Entropy>
void tile_backward(const T* logits, const T* weights, const T* grad_weights, const Entropy& grad_entropy, int64_t left,
                   int64_t heads, A inverse_temperature, T* out) {
  constexpr int64_t W = kTile<A>;
  const int64_t rows = std::min(W, left);
  Tile<A> s, p, g;
  s.load(logits, rows, heads, left * heads);
  tile_scores(s, heads, inverse_temperature);
  if (weights != nullptr) {
    p.load(weights, rows, heads, left * heads);
  } else {
    tile_softmax(s, p, heads);
  }
  if (grad_weights != nullptr) {
    g.load(grad_weights, rows, heads, left * heads);
  } else {
    std::fill(g.at, g.at + heads * W, A(0));
  }
  const Lanes<A> dot = tile_dot(p, s, heads), g_mean = tile_dot(p, g, heads);
  Lanes<A> h = {};
  for (int64_t r = 0; r < rows; ++r) h[r] = grad_entropy(r);
  for (int64_t j = 0; j < heads; ++j) {
    const A *gj = g.at + j * W, *sj = s.at + j * W;
    A* pj = p.at + j * W;
#pragma omp simd
    for (int64_t r = 0; r < W; ++r) {
      pj[r] = route_gradient(pj[r], gj[r], g_mean[r], h[r], sj[r], dot[r], inverse_temperature);
    }
  }
  p.store(out, rows, heads);
}

template <class A>
struct Row {
  A max = -std::numeric_limits<A>::infinity();
  double sum = 0, dot = 0, g_mean = 0;
};

// f(first, count) over the pieces of a long row.
template <class F>
void pieces(int64_t heads, const F& f) {
  for (int64_t i = 0; i < heads; i += kPiece) f(i, std::min(kPiece, heads - i));
}

template <class T, class A>
Row<A> long_softmax(const T* logits, const T* grad_weights, int64_t heads, A inverse_temperature) {
  Row<A> row;
  alignas(64) A z[kPiece], g[kPiece];
  pieces(heads, [&](int64_t first, int64_t n) {
    convert(logits + first, z, n);
    const A max = row_max(z, n);
    row.max = max > row.max ? max : row.max;
  });
  pieces(heads, [&](int64_t first, int64_t n) {
    convert(logits + first, z, n);
    A sum = 0, dot = 0, mean = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (int64_t i = 0; i < n; ++i) {
      const A s = route_score(z[i], row.max, inverse_temperature);
      z[i] = exp_nonpositive(s);
      sum += z[i];
      dot += z[i] * s;
    }
    if (grad_weights != nullptr) {
      convert(grad_weights + first, g, n);
#pragma omp simd reduction(+ : mean)
      for (int64_t i = 0; i < n; ++i) mean += z[i] * g[i];
    }
    row.sum += sum, row.dot += dot, row.g_mean += mean;
  });
  row.g_mean /= row.sum, row.dot /= row.sum;
  return row;
}

template <class T, class A, class Put>
void long_forward(const T* logits, int64_t heads, A inverse_temperature, T* weights, const Put& put) {
  const Row<A> row = long_softmax<T, A>(logits, nullptr, heads, inverse_temperature);
  put(0, static_cast<A>(route_entropy(row.sum, row.dot)));
  if (weights == nullptr) return;
  const A inverse = static_cast<A>(1 / row.sum);
  alignas(64) A z[kPiece];
  pieces(heads, [&](int64_t first, int64_t n) {
    convert(logits + first, z, n);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) z[i] = exp_nonpositive(route_score(z[i], row.max, inverse_temperature)) * inverse;
    convert(z, weights + first, n);
  });
}

template <class T, class A>
void long_backward(const T* logits, const T* grad_weights, A grad_entropy, int64_t heads, A inverse_temperature, T* out) {
  const Row<A> row = long_softmax<T, A>(logits, grad_weights, heads, inverse_temperature);
  const A inverse = static_cast<A>(1 / row.sum), g_mean = static_cast<A>(row.g_mean);
  const A dot_mean = static_cast<A>(row.dot);
  alignas(64) A z[kPiece], g[kPiece] = {};
  pieces(heads, [&](int64_t first, int64_t n) {
    convert(logits + first, z, n);
    if (grad_weights != nullptr) convert(grad_weights + first, g, n);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const A s = route_score(z[i], row.max, inverse_temperature);
      z[i] = route_gradient(exp_nonpositive(s) * inverse, g[i], g_mean, grad_entropy, s, dot_mean, inverse_temperature);
    }
    convert(z, out + first, n);
  });
}

// put(row, entropy) for rows [begin, end); weights may be null.
template <class T, class A, class Put>
void forward_rows(const T* logits, int64_t begin, int64_t end, int64_t heads, A inverse_temperature, T* weights,
                  const Put& put) {
  const int64_t step = heads <= kTile<A> ? kTile<A> : 1;
  for (int64_t i = begin; i < end; i += step) {
    const auto put_here = [&](int64_t r, A entropy) { put(i + r, entropy); };
    T* out = weights == nullptr ? nullptr : weights + i * heads;
    if (heads <= kTile<A>) {
      tile_forward(logits + i * heads, end - i, heads, inverse_temperature, out, put_here);
    } else {
      long_forward(logits + i * heads, heads, inverse_temperature, out, put_here);
    }
  }
}

int64_t head_count(const Tensor& logits) {
  check(logits.dim() >= 1 && logits.size(logits.dim() - 1) >= 1, "logits must have shape [..., H] with H >= 1");
  return logits.size(logits.dim() - 1);
}

Tensor empty_rows(const Tensor& logits) {
  const auto sizes = logits.sizes();
  return new_empty(std::vector<int64_t>(sizes.begin(), sizes.end() - 1), logits.scalar_type());
}

int64_t row_grain(int64_t heads) { return std::max<int64_t>(kGrain / heads, 1); }

std::tuple<Tensor, Tensor> route(const Tensor& logits_in, double temperature) {
  const Tensor logits = packed(logits_in);
  const int64_t heads = head_count(logits), rows = logits.numel() / heads;
  const Tensor weights = new_empty(logits.sizes(), logits.scalar_type()), entropy = empty_rows(logits);
  dispatch(logits.scalar_type(), "logits", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const T* z = data<T>(logits);
    T *w = data<T>(weights), *h = data<T>(entropy);
    parallel(rows, row_grain(heads), [&](int64_t begin, int64_t end) {
      forward_rows<T, A>(z, begin, end, heads, route_inverse_temperature<A>(temperature), w,
                         [h](int64_t r, A value) { h[r] = static_cast<T>(value); });
    });
  });
  return {weights, entropy};
}

Tensor routing_entropy(const Tensor& logits_in, double temperature, int64_t reduction) {
  check(reduction >= kMean && reduction <= kNone, "reduction must be 0 (mean), 1 (sum) or 2 (none)");
  const Tensor logits = packed(logits_in);
  const int64_t heads = head_count(logits), rows = logits.numel() / heads;
  const Tensor out = reduction == kNone ? empty_rows(logits) : new_empty({}, logits.scalar_type());
  dispatch(logits.scalar_type(), "logits", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const T* z = data<T>(logits);
    T* h = data<T>(out);
    const A t = route_inverse_temperature<A>(temperature);
    if (reduction == kNone) {
      parallel(rows, row_grain(heads), [&](int64_t begin, int64_t end) {
        forward_rows<T, A>(z, begin, end, heads, t, nullptr,
                           [h](int64_t r, A value) { h[r] = static_cast<T>(value); });
      });
      return;
    }
    const int64_t blocks = (rows + kBlock - 1) / kBlock;
    std::vector<double> sums(blocks, 0.0);
    parallel(blocks, std::max<int64_t>(kGrain / (heads * kBlock), 1), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        forward_rows<T, A>(z, b * kBlock, std::min((b + 1) * kBlock, rows), heads, t, nullptr,
                           [&](int64_t, A value) { sums[b] += value; });
      }
    });
    double total = 0;
    for (const double sum : sums) total += sum;
    *h = static_cast<T>(static_cast<A>(reduction == kMean && rows > 0 ? total / rows : total));
  });
  return out;
}

// weights: what route returned, if exact enough to save their exponentials (not in half precision).
// grad_entropy: one value per row, or a single one for all rows (of a reduced entropy); times entropy_scale.
Tensor route_backward(const std::optional<Tensor>& grad_weights, const Tensor& grad_entropy, double entropy_scale,
                      const Tensor& logits_in, const std::optional<Tensor>& weights_in, double temperature) {
  const Tensor logits = packed(logits_in), gh = packed(grad_entropy);
  const std::optional<Tensor> gw = packed(grad_weights), weights = packed(weights_in);
  const int64_t heads = head_count(logits), rows = logits.numel() / heads;
  const bool shared = gh.dim() == 0 && logits.dim() > 1;
  check(shared || gh.numel() == rows, "grad_entropy must have one value, or one per row of logits");
  check(gh.scalar_type() == logits.scalar_type(), "grad_entropy must have the dtype of logits");
  if (gw) {
    check(gw->numel() == logits.numel(), "grad_weights must have the shape of logits");
    check(gw->scalar_type() == logits.scalar_type(), "grad_weights must have the dtype of logits");
  }
  if (weights) {
    check(weights->numel() == logits.numel(), "weights must have the shape of logits");
    check(weights->scalar_type() == logits.scalar_type(), "weights must have the dtype of logits");
  }
  const Tensor out = new_empty(logits.sizes(), logits.scalar_type());
  dispatch(logits.scalar_type(), "logits", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const T *z = data<T>(logits), *p = data<T>(weights), *g = data<T>(gw), *h = data<T>(gh);
    T* to = data<T>(out);
    const A t = route_inverse_temperature<A>(temperature);
    parallel(rows, row_grain(heads), [&](int64_t begin, int64_t end) {
      const auto entropy_at = [&](int64_t r) {
        return static_cast<A>(static_cast<A>(h[shared ? 0 : r]) * entropy_scale);
      };
      for (int64_t i = begin; i < end; i += heads <= kTile<A> ? kTile<A> : 1) {
        const T *zi = z + i * heads, *gi = g == nullptr ? nullptr : g + i * heads;
        if (heads <= kTile<A>) {
          const auto here = [&](int64_t r) { return entropy_at(i + r); };
          tile_backward<T, A>(zi, p == nullptr ? nullptr : p + i * heads, gi, here, end - i, heads, t,
                              to + i * heads);
        } else {
          long_backward<T, A>(zi, gi, entropy_at(i), heads, t, to + i * heads);
        }
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace poh

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) {
  m.impl("route", TORCH_BOX(&poh::route));
  m.impl("route_backward", TORCH_BOX(&poh::route_backward));
  m.impl("routing_entropy", TORCH_BOX(&poh::routing_entropy));
}
