// What both directions of neighbour attention read, head by head: rows as whole SIMD vectors, the cells of every slot.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "common/checks.h"
#include "common/cpu.h"
#include "common/simd_loops.h"
#include "neighbor_attention/ops.h"

namespace poh {

// Moves n < kLanes numbers; lanes beyond them are 0 on the way in.
template <class A>
inline Vector<A> load_part(const A* from, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) {
    return std::bit_cast<Vector<A>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), from));
  } else {
    return std::bit_cast<Vector<A>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), from));
  }
#else
  return load_tail(from, n, A(0));
#endif
}

template <class A>
inline void store_part(A* to, Vector<A> v, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << n) - 1), std::bit_cast<__m512>(v));
  } else {
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << n) - 1), std::bit_cast<__m512d>(v));
  }
#else
  A lane[kLanes<A>];
  store(lane, v);
  for (int64_t j = 0; j < n; ++j) to[j] = lane[j];
#endif
}

template <class A>
inline int64_t vectors_for(int64_t width) {
  return (width + kLanes<A> - 1) / kLanes<A>;
}

// One row of D numbers of T from or to whole vectors of A.
template <class T, class A>
inline void load_row(const T* from, int64_t inner, int64_t D, A* to) {
  constexpr int64_t W = kLanes<A>;
  if constexpr (std::is_same_v<T, A>) {
    if (inner == 1) {
      int64_t j = 0;
      for (; j + W <= D; j += W) store(to + j, load(from + j));
      if (j < D) store(to + j, load_part(from + j, D - j));
      return;
    }
  }
  if (inner == 1) {
    convert(from, to, D);
  } else {
    for (int64_t j = 0; j < D; ++j) to[j] = static_cast<A>(from[j * inner]);
  }
  for (int64_t j = D; j < vectors_for<A>(D) * W; ++j) to[j] = 0;
}

template <class A, class T>
inline void store_row(const A* from, int64_t D, T* to) {
  if constexpr (std::is_same_v<T, A>) {
    constexpr int64_t W = kLanes<A>;
    int64_t j = 0;
    for (; j + W <= D; j += W) store(to + j, load(from + j));
    if (j < D) store_part(to + j, load(from + j), D - j);
  } else {
    convert(from, to, D);
  }
}

// Rows of one head, each of whole vectors, zero after D.
template <class A>
struct Rows {
  const A* at;
  int64_t stride;
  const A* operator[](int64_t i) const { return at + i * stride; }
};

// In place where the rows are so already, else copied to `room`.
template <class T, class A>
Rows<A> rows_of(const Strided<T>& t, int64_t b, int64_t h, const AttentionShape& shape, A* room) {
  const T* from = t.at + b * t.batch + h * t.head;
  const int64_t padded = vectors_for<A>(shape.D) * kLanes<A>;
  if constexpr (std::is_same_v<T, A>) {
    if (t.inner == 1 && padded == shape.D) return {from, t.cell};
  }
  for (int64_t i = 0; i < shape.N; ++i) load_row(from + i * t.cell, t.inner, shape.D, room + i * padded);
  return {room, padded};
}

// [H, slots, D] (or [H, slots], D = 1) in A, each row of whole vectors unless `dense`; zeros where there is no table.
template <class A>
std::vector<A> table_of(const std::optional<Tensor>& table, int64_t rows, int64_t D, bool dense) {
  const int64_t padded = dense ? D : vectors_for<A>(D) * kLanes<A>;
  std::vector<A> out(static_cast<size_t>(rows * padded + kLanes<A>), A(0));
  if (!table) return out;
  const Tensor from = packed(*table);
  check(from.numel() == rows * D, "bias and offsets must have a row for each head and slot");
  dispatch(from.scalar_type(), "bias and offsets", [&](auto zero) {
    using T = decltype(zero);
    for (int64_t r = 0; r < rows; ++r) convert(data<T>(from) + r * D, out.data() + r * padded, D);
  });
  return out;
}

// The cells of the candidates in blocks of W cells, slot by slot: at[((b * blocks + block) * C + c) * W + r] is the c-th
// candidate of cell block * W + r of maze b; -1 where there is none and past the last cell.
class Neighbors {
 public:
  Neighbors(const Tensor& candidates_in, const AttentionShape& shape, int64_t W)
      : blocks_((shape.N + W - 1) / W), block_(shape.C * W) {
    const Tensor candidates = packed(candidates_in);
    check_tensor(candidates, "candidates", ScalarType::Long, 3);
    check(candidates.size(0) == shape.B && candidates.size(1) == shape.N, "candidates must have a list for each cell");
    check(shape.N <= std::numeric_limits<int32_t>::max(), "q must have fewer than 2^31 cells, got ", shape.N);
    const int64_t *from = data<int64_t>(candidates), C = shape.C, N = shape.N;
    at_.reset(new int32_t[static_cast<size_t>(shape.B * blocks_ * block_ + 1)]);
    const int64_t none = candidates.numel();
    std::atomic<int64_t> first{none};
    parallel(shape.B * blocks_, std::max<int64_t>(1, 16384 / (block_ + 1)), [&](int64_t begin, int64_t end) {
      int64_t wrong = none;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / blocks_, cell = i % blocks_ * W;
        int32_t* const to = at_.get() + i * block_;
        for (int64_t r = 0; r < W; ++r) {
          const int64_t place = (b * N + cell + r) * C;
          for (int64_t c = 0; c < C; ++c) {
            int64_t j = -1;
            if (cell + r < N) j = from[place + c];
            if (j < -1 || j >= N) {
              wrong = std::min(wrong, place + c);
              j = -1;
            }
            to[c * W + r] = static_cast<int32_t>(j);
          }
        }
      }
      int64_t seen = first.load();
      while (wrong < seen && !first.compare_exchange_weak(seen, wrong)) {
      }
    });
    if (const int64_t i = first.load(); i < none) neighbor_error(i, from[i], N, C);
  }

  const int32_t* block(int64_t b, int64_t i) const { return at_.get() + (b * blocks_ + i) * block_; }

 private:
  std::unique_ptr<int32_t[]> at_;
  int64_t blocks_, block_;
};

// Sums of W vectors: lane r of the result is the sum over the lanes of part(r). Neighbouring lanes are added first, so
// the even and odd lanes of two vectors make one of both; log2(W) times over.
template <class V, size_t... j>
inline V pair_sums(V a, V b, std::index_sequence<j...>) {
  return __builtin_shufflevector(a, b, (2 * static_cast<int>(j))...) +
         __builtin_shufflevector(a, b, (2 * static_cast<int>(j) + 1)...);
}

template <class A, int n = kLanes<A>, class Part>
[[gnu::always_inline]] inline Vector<A> sums_by_lane(const Part& part, int first = 0) {
  if constexpr (n == 1) {
    return part(first);
  } else {
    const Vector<A> low = sums_by_lane<A, n / 2>(part, first);
    return pair_sums(low, sums_by_lane<A, n / 2>(part, first + n / 2), std::make_index_sequence<kLanes<A>>());
  }
}

// a . (b + c) lane by lane, over the vectors of a row.
template <class A, int NV>
inline Vector<A> lane_products(const A* a, const A* b, const A* c, int64_t vectors) {
  constexpr int64_t W = kLanes<A>;
  Vector<A> sum = load(a) * (load(b) + load(c));
  for (int64_t v = 1; v < (NV ? NV : vectors); ++v) sum += load(a + v * W) * (load(b + v * W) + load(c + v * W));
  return sum;
}

// f(NV, S) with the numbers of vectors and slots as constants where they are common ones, in float: the four neighbours
// of a grid and the cell itself. 0 stands for any. Each pair is compiled for itself, which is most of the time of a
// build.
template <class A, class F>
void with_sizes(int64_t vectors, int64_t slots, const F& f) {
  constexpr std::integral_constant<int, 0> any;
  constexpr std::integral_constant<int, 5> five;
  if constexpr (std::is_same_v<A, float>) {
    if (slots == 5 && vectors == 1) return f(std::integral_constant<int, 1>(), five);
    if (slots == 5 && vectors == 2) return f(std::integral_constant<int, 2>(), five);
    if (slots == 5 && vectors == 4) return f(std::integral_constant<int, 4>(), five);
    if (slots == 5) return f(any, five);
  }
  f(any, any);
}

}  // namespace poh
