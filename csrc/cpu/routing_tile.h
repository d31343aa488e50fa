// Routing over a few heads: rows lie across the SIMD lanes, a tile of W rows at a time.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu/rows.h"
#include "cpu/transpose.h"
#include "math/routing.h"

namespace poh {

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

}  // namespace poh
