// SIMD loops over one row of numbers. A is float or double; T is what is stored, A itself or a half type.
// No loop here adds in an order that depends on threads.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__F16C__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/exp_log.h"
#include "common/simd.h"
#include "common/tensors.h"

namespace poh {

template <class T, class A>
void convert(const T* from, A* to, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<T, Half> && std::is_same_v<A, float>) {
    for (; i + 8 <= n; i += 8) {
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
    }
  }
  if constexpr (std::is_same_v<T, float> && std::is_same_v<A, Half>) {
    for (; i + 8 <= n; i += 8) {
      const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), half);
    }
  }
#endif
  if constexpr (std::is_same_v<T, BFloat16> && std::is_same_v<A, float>) {
    const uint16_t* bits = reinterpret_cast<const uint16_t*>(from);
#pragma omp simd
    for (int64_t j = i; j < n; ++j) to[j] = std::bit_cast<float>(static_cast<uint32_t>(bits[j]) << 16);
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<A, BFloat16>) {
    uint16_t* bits = reinterpret_cast<uint16_t*>(to);
#pragma omp simd
    for (int64_t j = i; j < n; ++j) {  // round to nearest even; NaN keeps a set mantissa bit
      const uint32_t b = std::bit_cast<uint32_t>(from[j]);
      const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
      bits[j] = static_cast<uint16_t>(from[j] == from[j] ? rounded : 0x7fc0u);
    }
  } else {
    for (; i < n; ++i) to[i] = static_cast<A>(from[i]);
  }
}

// Largest element; NaN are passed over (they reach the sum of exponentials).
template <class A>
A row_max(const A* z, int64_t n) {
  constexpr int64_t W = kLanes<A>;
  constexpr A low = -std::numeric_limits<A>::infinity();
  const auto larger = [](Vector<A> a, Vector<A> b) { return b > a ? b : a; };
  Vector<A> m0 = broadcast(low), m1 = m0, m2 = m0, m3 = m0;
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W) {
    m0 = larger(m0, load(z + i));
    m1 = larger(m1, load(z + i + W));
    m2 = larger(m2, load(z + i + 2 * W));
    m3 = larger(m3, load(z + i + 3 * W));
  }
  for (; i + W <= n; i += W) m0 = larger(m0, load(z + i));
  if (i < n) m1 = larger(m1, load_tail(z + i, n - i, low));
  return fold_max<A>(larger(larger(m0, m1), larger(m2, m3)));
}

// Whether z[y] is the maximum and none before it is.
template <class A>
bool is_first(const A* z, int64_t y, A max) {
  if (z[y] != max) return false;
  bool earlier = false;
#pragma omp simd reduction(| : earlier)
  for (int64_t v = 0; v < y; ++v) earlier |= z[v] == max;
  return !earlier;
}

// Bit j: whether mask[j] is set, for 64 of them.
inline uint64_t mask_bits(const bool* mask) {
#if defined(__AVX512BW__)
  const __m512i bytes = _mm512_loadu_si512(mask);
  return _mm512_test_epi8_mask(bytes, bytes);
#elif defined(__AVX2__)
  const __m256i zero = _mm256_setzero_si256();
  const auto half = [zero](const bool* at) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    return ~static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, zero)));
  };
  return half(mask) | static_cast<uint64_t>(half(mask + 32)) << 32;
#else
  uint64_t bits = 0;
  for (int64_t j = 0; j < 64; ++j) bits |= static_cast<uint64_t>(mask[j]) << j;
  return bits;
#endif
}

// The indices of the set elements of mask[n], ascending, to out (room for `room`); returns how many, or room + 1 if
// there are more.
inline int64_t set_indices(const bool* mask, int64_t n, int32_t* out, int64_t room) {
  int64_t count = 0;
  for (int64_t begin = 0; begin < n; begin += 64) {
    uint64_t bits;
    if (begin + 64 <= n) {
      bits = mask_bits(mask + begin);
    } else if (n >= 64) {
      bits = mask_bits(mask + n - 64) >> (begin + 64 - n);  // the last 64, less those already seen
    } else {
      bool tail[64] = {};
      std::memcpy(tail, mask + begin, n - begin);
      bits = mask_bits(tail);
    }
    if (count + std::popcount(bits) > room) return room + 1;
    for (; bits != 0; bits &= bits - 1) out[count++] = static_cast<int32_t>(begin + std::countr_zero(bits));
  }
  return count;
}

// sum exp(z - max), and sum w (z - max) where asked for (w: null for ones). Long float sums lose digits: blocks
// of 1024 are summed in A, the blocks in double.
template <class A>
struct RowSums {
  A exp, dot;
};

template <bool Dot, bool Weighted, class A>
RowSums<A> row_sums(const A* z, const A* w, int64_t n, A max) {
  constexpr int64_t W = kLanes<A>;
  double total_exp = 0, total_dot = 0;
  for (int64_t begin = 0; begin < n; begin += 1024) {
    const int64_t end = std::min<int64_t>(begin + 1024, n);
    Vector<A> exp0{}, exp1{}, dot0{}, dot1{};
    const auto add = [&](const A* at, int64_t offset, Vector<A>& exp, Vector<A>& dot) {
      const Vector<A> x = load(at) - max;
      exp += exp_nonpositive(x);
      if constexpr (Dot && Weighted) dot += x * load(w + offset);
      if constexpr (Dot && !Weighted) dot += x;
    };
    int64_t i = begin;
    for (; i + 2 * W <= end; i += 2 * W) {
      add(z + i, i, exp0, dot0);
      add(z + i + W, i + W, exp1, dot1);
    }
    for (; i + W <= end; i += W) add(z + i, i, exp0, dot0);
    A dot_tail = 0;
    if (i < end) {
      exp1 += exp_nonpositive(load_tail(z + i, end - i, -std::numeric_limits<A>::infinity()) - max);
      for (; Dot && i < end; ++i) dot_tail += Weighted ? (z[i] - max) * w[i] : z[i] - max;
    }
    total_exp += fold_sum<A>(exp0 + exp1);
    if constexpr (Dot) total_dot += fold_sum<A>(dot0 + dot1) + dot_tail;
  }
  return {static_cast<A>(total_exp), static_cast<A>(total_dot)};
}

// out_v = prob exp(z_v - max - log_sum) - spread w_v (w: null for ones; not looked at where spread is 0).
template <class A>
void softmax_gradient(const A* z, const A* w, A* out, int64_t n, A max, A log_sum, A prob, A spread) {
  if (w == nullptr || spread == 0) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = prob * exp_nonpositive(z[i] - max - log_sum) - spread;
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = prob * exp_nonpositive(z[i] - max - log_sum) - spread * w[i];
  }
}

// from[n] in A: itself, or converted into `to`.
template <class T, class A>
const A* widen(const T* from, A* to, int64_t n) {
  if constexpr (std::is_same_v<T, A>) {
    return from;
  } else {
    convert(from, to, n);
    return to;
  }
}

template <class A>
A row_dot(const A* x, const A* y, int64_t n) {
  constexpr int64_t W = kLanes<A>;
  Vector<A> s0{}, s1{}, s2{}, s3{};
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W) {
    s0 += load(x + i) * load(y + i);
    s1 += load(x + i + W) * load(y + i + W);
    s2 += load(x + i + 2 * W) * load(y + i + 2 * W);
    s3 += load(x + i + 3 * W) * load(y + i + 3 * W);
  }
  A tail = 0;
  for (; i < n; ++i) tail += x[i] * y[i];
  return fold_sum<A>((s0 + s1) + (s2 + s3)) + tail;
}

template <class A>
void add_scaled(A* y, const A* x, A a, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

template <class A>
void soft_cap(A* z, int64_t n, A cap) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) z[i] = cap * fast_tanh(z[i] / cap);
}

}  // namespace poh
