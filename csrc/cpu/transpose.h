// Square tiles of W x W numbers, W to a 64-byte vector, turned on their diagonal in registers.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace poh {

template <class A>
inline constexpr int64_t kTile = 64 / sizeof(A);

// out[j * W + r] = in[r * stride + j] for all r and j < W. Reads W numbers from each in + r * stride.
// Strides of either side may be below W: rows are written in order, so a row's excess is overwritten by the next.
template <class A>
void transpose_tile(const A* in, int64_t in_stride, A* out, int64_t out_stride) {
  constexpr int64_t W = kTile<A>;
#if defined(__AVX512F__) && defined(__GNUC__)
  // Interleaving row i with row i + W / 2, log2(W) times over, is the transpose. Compilers make gathers and
  // scatters of the plain loop below, at 2 to 3 cycles a number.
  typedef A V __attribute__((vector_size(64)));
  using I = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  typedef I Index __attribute__((vector_size(64)));
  Index low, high;
  for (int64_t k = 0; k < W; ++k) {
    low[k] = static_cast<I>(k / 2 + (k % 2) * W);
    high[k] = static_cast<I>(W / 2 + k / 2 + (k % 2) * W);
  }
  V a[W], b[W];
  for (int64_t r = 0; r < W; ++r) std::memcpy(&a[r], in + r * in_stride, sizeof(V));
#pragma GCC unroll 4
  for (int64_t round = 1; round < W; round *= 2) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < W / 2; ++i) {
      b[2 * i] = __builtin_shuffle(a[i], a[i + W / 2], low);
      b[2 * i + 1] = __builtin_shuffle(a[i], a[i + W / 2], high);
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < W; ++i) a[i] = b[i];
  }
  for (int64_t r = 0; r < W; ++r) std::memcpy(out + r * out_stride, &a[r], sizeof(V));
#else
  alignas(64) A turned[W * W];
  for (int64_t r = 0; r < W; ++r) {
    for (int64_t j = 0; j < W; ++j) turned[j * W + r] = in[r * in_stride + j];
  }
  for (int64_t r = 0; r < W; ++r) std::memcpy(out + r * out_stride, turned + r * W, W * sizeof(A));
#endif
}

}  // namespace poh
