// Rows of a few heads lie across the SIMD lanes, a tile of rows at a time. Of many heads, a row lies along the lanes,
// in pieces that stay in the first cache.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "common/simd.h"
#include "common/simd_loops.h"
#include "routing/math.h"

namespace poh {

inline constexpr int64_t kTileHeads = 16;  // beyond, a row alone fills its vectors

// N vectors as one: a tile is a long chain of sums over heads and an exponential, a quotient and a logarithm on top,
// of which a CPU has to have more than one under way. (Measured: with 256 bits 4 take 8 % less time than 2.)
inline constexpr int kTileVectors = kVectorBytes == 32 ? 4 : 2;
template <class A>
inline constexpr int64_t kTileRows = kTileVectors * kLanes<A>;

template <class A>
struct TileRow {  // one number for each row of a tile
  Vector<A> v[kTileVectors] = {};
};

// kTileRows rows of at most kTileHeads heads: lane r of at[i][j] is head j of row i * kLanes + r.
template <class A>
struct Tile {
  static constexpr int64_t W = kTileRows<A>;
  Vector<A> at[kTileVectors][kTileHeads];

  // ahead: how many numbers there are from `from` on, of these rows and of those after them.
  template <class T>
  void load(const T* from, int64_t rows, int64_t heads, int64_t ahead) {
    const int64_t reach = (W - 1) * heads + whole_pieces<A>(heads);  // past the last row, for it comes in whole pieces
    if constexpr (std::is_same_v<T, A>) {
      if (rows == W && ahead >= reach) return turn(from, heads);
    }
    A flat[W * kTileHeads + kPieceColumns<A>];
    convert(from, flat, rows * heads);
    std::fill(flat + rows * heads, flat + reach, A(0));
    turn(flat, heads);
  }

  template <class T>
  void store(T* to, int64_t rows, int64_t heads) const {
    if constexpr (std::is_same_v<T, A>) {
      if (rows == W) return turn_back(to, heads);
    }
    A flat[W * kTileHeads];
    turn_back(flat, heads);
    convert(flat, to, rows * heads);
  }

 private:
  void turn(const A* from, int64_t heads) {
    for (int i = 0; i < kTileVectors; ++i) rows_to_columns(from + i * kLanes<A> * heads, heads, heads, at[i]);
  }
  void turn_back(A* to, int64_t heads) const {
    for (int i = 0; i < kTileVectors; ++i) columns_to_rows(at[i], heads, to + i * kLanes<A> * heads);
  }
};

// f(i) for the vectors of a row of a tile
template <class F>
inline void each_vector(const F& f) {
#pragma GCC unroll 4
  for (int i = 0; i < kTileVectors; ++i) f(i);
}

template <class A>
inline TileRow<A> tile_max(const Tile<A>& z, int64_t heads) {
  TileRow<A> max;
  each_vector([&](int i) { max.v[i] = z.at[i][0]; });
  for (int64_t j = 1; j < heads; ++j) {
    each_vector([&](int i) { max.v[i] = z.at[i][j] > max.v[i] ? z.at[i][j] : max.v[i]; });
  }
  return max;
}

// Per row: Z and D / Z.
template <class A>
struct TileSums {
  TileRow<A> sum, dot;
};

// Logits z to weights, in place; scores to s unless null.
template <class A>
inline TileSums<A> tile_softmax(Tile<A>& z, int64_t heads, A inverse_temperature, Tile<A>* s) {
  const TileRow<A> max = tile_max(z, heads);
  TileSums<A> of;
  for (int64_t j = 0; j < heads; ++j) {
    each_vector([&](int i) {
      const Vector<A> score = route_score(z.at[i][j], max.v[i], inverse_temperature), e = exp_nonpositive(score);
      if (s != nullptr) s->at[i][j] = score;
      z.at[i][j] = e;
      of.sum.v[i] += e;
      of.dot.v[i] += e * score;
    });
  }
  TileRow<A> inverse;
  each_vector([&](int i) {
    inverse.v[i] = 1 / of.sum.v[i];
    of.dot.v[i] *= inverse.v[i];
  });
  for (int64_t j = 0; j < heads; ++j) each_vector([&](int i) { z.at[i][j] *= inverse.v[i]; });
  return of;
}

// The first of the rows left, at most as many as a tile has; put(rows, their entropies).
template <class T, class A, class Put>
void tile_forward(const T* logits, int64_t left, int64_t heads, A inverse_temperature, T* weights, const Put& put) {
  constexpr int64_t W = kTileRows<A>;
  const int64_t rows = std::min(W, left);
  Tile<A> p;
  p.load(logits, rows, heads, left * heads);
  const TileSums<A> sums = tile_softmax<A>(p, heads, inverse_temperature, nullptr);
  A entropy[W];
  each_vector([&](int i) { store<A>(entropy + i * kLanes<A>, route_entropy(sums.sum.v[i], sums.dot.v[i])); });
  rows == W ? put(W, entropy) : put(rows, entropy);  // a copy of known length is a few moves
  if (weights != nullptr) p.store(weights, rows, heads);
}

// grad_entropy: of kTileRows rows.
template <class T, class A>
void tile_backward(const T* logits, const T* weights, const T* grad_weights, const A* grad_entropy, int64_t left,
                   int64_t heads, A inverse_temperature, T* out) {
  const int64_t rows = std::min(kTileRows<A>, left);
  Tile<A> s, p, g;
  TileRow<A> dot, g_mean;
  if (weights != nullptr) {
    s.load(logits, rows, heads, left * heads);
    p.load(weights, rows, heads, left * heads);
    const TileRow<A> max = tile_max(s, heads);
    for (int64_t j = 0; j < heads; ++j) {
      each_vector([&](int i) {
        s.at[i][j] = route_score(s.at[i][j], max.v[i], inverse_temperature);
        dot.v[i] += p.at[i][j] * s.at[i][j];
      });
    }
  } else {
    p.load(logits, rows, heads, left * heads);
    dot = tile_softmax(p, heads, inverse_temperature, &s).dot;
  }
  if (grad_weights != nullptr) {
    g.load(grad_weights, rows, heads, left * heads);
    for (int64_t j = 0; j < heads; ++j) each_vector([&](int i) { g_mean.v[i] += p.at[i][j] * g.at[i][j]; });
  } else {
    for (auto& each : g.at) std::fill(each, each + heads, Vector<A>{});
  }
  TileRow<A> h;
  each_vector([&](int i) { h.v[i] = poh::load(grad_entropy + i * kLanes<A>); });
  for (int64_t j = 0; j < heads; ++j) {
    each_vector([&](int i) {
      p.at[i][j] = route_gradient(p.at[i][j], g.at[i][j], g_mean.v[i], h.v[i], s.at[i][j], dot.v[i], inverse_temperature);
    });
  }
  p.store(out, rows, heads);
}

inline constexpr int64_t kPiece = 512;  // elements

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
  const A entropy = static_cast<A>(route_entropy(row.sum, row.dot));
  put(1, &entropy);
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

}  // namespace poh
