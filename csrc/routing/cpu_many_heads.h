// Routing over many heads: a row lies along the SIMD lanes, in pieces that stay in the first cache.
#pragma once

#include <algorithm>
#include <limits>

#include "common/simd_loops.h"
#include "routing/math.h"

namespace poh {

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
