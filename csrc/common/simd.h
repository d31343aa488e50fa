// SIMD vectors as GCC and Clang offer them on every target, as wide as the capability this is compiled for; and rows to
// columns and back in registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "common/exp_log.h"

namespace poh {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

typedef float FloatVector __attribute__((vector_size(kVectorBytes)));
typedef double DoubleVector __attribute__((vector_size(kVectorBytes)));
typedef uint32_t FloatBits __attribute__((vector_size(kVectorBytes)));
typedef uint64_t DoubleBits __attribute__((vector_size(kVectorBytes)));

typedef int32_t FloatInteger __attribute__((vector_size(kVectorBytes)));
typedef int64_t DoubleInteger __attribute__((vector_size(kVectorBytes)));

template <>
struct ExpTraits<FloatVector> {
  using Scalar = float;
  using Bits = FloatBits;
  using Integer = FloatInteger;
  static FloatVector number(FloatInteger n) { return __builtin_convertvector(n, FloatVector); }
};

template <>
struct ExpTraits<DoubleVector> {
  using Scalar = double;
  using Bits = DoubleBits;
  using Integer = DoubleInteger;
  static DoubleVector number(DoubleInteger n) { return __builtin_convertvector(n, DoubleVector); }
};

template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = FloatVector;
};
template <>
struct VectorOf<double> {
  using type = DoubleVector;
};
template <class A>
using Vector = typename VectorOf<A>::type;

template <class A>
inline constexpr int64_t kLanes = kVectorBytes / sizeof(A);

// As many integers, each as wide as A.
template <class A>
using Integers = typename ExpTraits<Vector<A>>::Integer;

template <class A>
inline Vector<A> load(const A* from) {
  Vector<A> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <class A, class I>
inline Integers<A> load_integers(const I* from) {
  static_assert(sizeof(I) == sizeof(A));
  Integers<A> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <class A>
inline void store(A* to, Vector<A> v) {
  std::memcpy(to, &v, sizeof(v));
}

// The first n < kLanes elements, then `fill`.
template <class A>
inline Vector<A> load_tail(const A* from, int64_t n, A fill) {
  A lane[kLanes<A>];
  for (A& each : lane) each = fill;
  for (int64_t j = 0; j < n; ++j) lane[j] = from[j];
  return load(lane);
}

template <class A>
inline Vector<A> broadcast(A a) {
  return Vector<A>{} + a;
}

// Lane j of the result is lane j + w of v, around.
template <int w, class V, size_t... j>
inline V rotate(V v, std::index_sequence<j...>) {
  return __builtin_shufflevector(v, v, static_cast<int>((j + w) % sizeof...(j))...);
}

// Across the lanes, pairwise.
template <class A, int w = kLanes<A> / 2, class Combine>
inline A fold(Vector<A> v, const Combine& combine) {
  if constexpr (w == 0) {
    return v[0];
  } else {
    return fold<A, w / 2>(combine(v, rotate<w>(v, std::make_index_sequence<kLanes<A>>())), combine);
  }
}

template <class A>
inline A fold_sum(Vector<A> v) {
  return fold<A>(v, [](Vector<A> a, Vector<A> b) { return a + b; });
}

template <class A>
inline A fold_max(Vector<A> v) {
  return fold<A>(v, [](Vector<A> a, Vector<A> b) { return b > a ? b : a; });
}

// Rows to columns and back: row r of W = kLanes rows lies in lane r of a vector for each column.
//
// Columns are taken a piece of 16 bytes at a time: shuffles within 16 bytes are a single instruction at every vector
// width, and a vector is put together from 16-byte pieces while it is loaded.
template <class A>
inline constexpr int64_t kPieceColumns = 16 / sizeof(A);

template <class A>
constexpr int64_t whole_pieces(int64_t columns) {
  return (columns + kPieceColumns<A> - 1) / kPieceColumns<A> * kPieceColumns<A>;
}

template <class V, size_t... j>
inline auto concat(V a, V b, std::index_sequence<j...>) {
  return __builtin_shufflevector(a, b, static_cast<int>(j)...);
}

// The vector of the pieces at from, from + stride, ...
template <class A, int64_t pieces = kVectorBytes / 16>
inline auto gather_pieces(const A* from, int64_t stride) {
  if constexpr (pieces == 1) {
    typedef A Piece __attribute__((vector_size(16)));
    Piece piece;
    std::memcpy(&piece, from, sizeof piece);
    return piece;
  } else {
    const auto low = gather_pieces<A, pieces / 2>(from, stride);
    const auto high = gather_pieces<A, pieces / 2>(from + pieces / 2 * stride, stride);
    return concat(low, high, std::make_index_sequence<pieces * kPieceColumns<A>>());
  }
}

template <int which, class V, size_t... j>
inline auto piece(V v, std::index_sequence<j...>) {
  return __builtin_shufflevector(v, v, static_cast<int>(which * sizeof...(j) + j)...);
}

// Piece by piece, of kPieceColumns vectors: element c of v[i] <-> element i of v[c].
template <class A, size_t... j>
inline void turn_pieces(Vector<A>* v, std::index_sequence<j...>) {
  constexpr int W = kLanes<A>;
  if constexpr (sizeof(A) == 8) {
    const Vector<A> a = v[0], b = v[1];
    v[0] = __builtin_shufflevector(a, b, static_cast<int>(j / 2 * 2 + j % 2 * W)...);
    v[1] = __builtin_shufflevector(a, b, static_cast<int>(j / 2 * 2 + 1 + j % 2 * W)...);
  } else {
    const auto low = [](Vector<A> a, Vector<A> b) {
      return __builtin_shufflevector(a, b, static_cast<int>(j / 4 * 4 + j % 4 / 2 + j % 2 * W)...);
    };
    const auto high = [](Vector<A> a, Vector<A> b) {
      return __builtin_shufflevector(a, b, static_cast<int>(j / 4 * 4 + 2 + j % 4 / 2 + j % 2 * W)...);
    };
    const auto first = [](Vector<A> a, Vector<A> b) {
      return __builtin_shufflevector(a, b, static_cast<int>(j / 4 * 4 + j % 2 + j % 4 / 2 * W)...);
    };
    const auto second = [](Vector<A> a, Vector<A> b) {
      return __builtin_shufflevector(a, b, static_cast<int>(j / 4 * 4 + 2 + j % 2 + j % 4 / 2 * W)...);
    };
    const Vector<A> a = low(v[0], v[1]), b = low(v[2], v[3]), c = high(v[0], v[1]), d = high(v[2], v[3]);
    v[0] = first(a, b), v[1] = second(a, b), v[2] = first(c, d), v[3] = second(c, d);
  }
}

// column[c], lane r = rows[r * stride + c], for whole_pieces(columns) columns.
template <class A>
inline void rows_to_columns(const A* rows, int64_t stride, int64_t columns, Vector<A>* column) {
  constexpr int64_t P = kPieceColumns<A>;
  for (int64_t c = 0; c < columns; c += P) {
    Vector<A> v[P];
    for (int64_t i = 0; i < P; ++i) v[i] = gather_pieces(rows + i * stride + c, P * stride);
    turn_pieces<A>(v, std::make_index_sequence<kLanes<A>>());
    for (int64_t i = 0; i < P; ++i) column[c + i] = v[i];
  }
}

template <class A, size_t... r>
[[gnu::always_inline]] inline void put_pieces(const Vector<A>* v, A* to, int64_t stride, std::index_sequence<r...>) {
  constexpr size_t P = kPieceColumns<A>;
  const auto put = [](A* at, auto part) { std::memcpy(at, &part, sizeof part); };
  (put(to + static_cast<int64_t>(r) * stride, piece<r / P>(v[r % P], std::make_index_sequence<P>())), ...);
}

// The way back, to rows that lie one after the other, and nothing beyond them.
template <class A>
inline void columns_to_rows(const Vector<A>* column, int64_t columns, A* rows) {
  constexpr int64_t P = kPieceColumns<A>, W = kLanes<A>;
  // The last piece of a row may reach into the first one of the next row: rows are written in order, and last pieces
  // before first ones, so that what belongs there is written later.
  for (int64_t c = whole_pieces<A>(columns) - P; c >= 0; c -= P) {
    Vector<A> v[P];
    for (int64_t i = 0; i < P; ++i) v[i] = column[c + i];
    turn_pieces<A>(v, std::make_index_sequence<W>());
    put_pieces(v, rows + c, columns, std::make_index_sequence<W - 1>());
    const auto last = piece<W / P - 1>(v[P - 1], std::make_index_sequence<P>());
    A* const to = rows + (W - 1) * columns + c;
    const int64_t left = std::min(P, columns - c);
    if (left == P) {
      std::memcpy(to, &last, sizeof last);
    } else {
      for (int64_t i = 0; i < left; ++i) to[i] = last[i];
    }
  }
}

}  // namespace poh
