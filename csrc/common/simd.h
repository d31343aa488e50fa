// SIMD vectors as GCC and Clang offer them on every target: as wide as the capability this is compiled for.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "common/exp.h"

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

}  // namespace poh
