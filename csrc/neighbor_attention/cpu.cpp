// Attention of every cell to itself and its candidates, forward and backward, one head of one maze at a time.
// Dot products run along a row; their sums are then turned so that W cells lie across the lanes for the softmax.
// Each thread owns whole heads, and with them the rows of dk and dv it adds to: no races, and one order of sums.
#include <torch/csrc/stable/library.h>

#include "neighbor_attention/cpu_head.h"

namespace poh {
namespace {

template <class T>
struct Inputs {
  using A = Accumulate<T>;
  const AttentionShape shape;
  Strided<T> q, k, v;
  std::vector<A> bias, key_offset, value_offset;
  Neighbors neighbors;
  A scale;

  explicit Inputs(const AttentionArguments& a)
      : shape(a.shape),
        q(strided<T>(a.q)),
        k(strided<T>(a.k)),
        v(strided<T>(a.v)),
        bias(table_of<A>(a.bias, shape.H * shape.slots(), 1, true)),
        key_offset(table_of<A>(a.key_offset, shape.H * shape.slots(), shape.D, false)),
        value_offset(table_of<A>(a.value_offset, shape.H * shape.slots(), shape.D, false)),
        neighbors(a.candidates, shape, kLanes<A>),
        scale(attention_scale<A>(shape.D)) {}

  // f(head, room): room for `more` rows of a head beyond its q, k and v. The rows of q are copied to the room's start.
  template <int NV, int S, class F>
  void each_head(int64_t begin, int64_t end, int64_t more, const F& f) const {
    const int64_t vectors = vectors_for<A>(shape.D), padded = vectors * kLanes<A>, rows = shape.N * padded;
    const int64_t table = shape.slots() * padded;
    std::unique_ptr<A[]> room(new A[static_cast<size_t>((3 + more) * rows + 64)]);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / shape.H, h = i % shape.H;
      const Head<A, NV, S> head{shape,
                                vectors,
                                padded,
                                rows_of<T, A>(q, b, h, shape, room.get()),
                                rows_of<T, A>(k, b, h, shape, room.get() + rows),
                                rows_of<T, A>(v, b, h, shape, room.get() + 2 * rows),
                                bias.data() + h * shape.slots(),
                                key_offset.data() + h * table,
                                value_offset.data() + h * table,
                                neighbors.block(b, 0),
                                scale,
                                shape.N};
      f(head, b, h, room.get() + 3 * rows);
    }
  }
};

// Heads a thread must have to be worth starting.
int64_t head_grain(const AttentionShape& shape) {
  return std::max<int64_t>(1, 16384 / (shape.N * shape.slots() * shape.D + 1));
}

// parts[B, H, slots, padded] summed over B, in order and in double, to [H, slots, width].
template <class A>
void sum_parts(const std::vector<A>& parts, int64_t B, int64_t rows, int64_t padded, int64_t width, A* out) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < width; ++j) {
      double sum = 0;
      for (int64_t b = 0; b < B; ++b) sum += parts[(b * rows + r) * padded + j];
      out[r * width + j] = static_cast<A>(sum);
    }
  }
}

struct CpuAttention {
  static constexpr bool kNeedsWeights = false;

  template <class T>
  using Call = Inputs<T>;

  template <class T, class A = Accumulate<T>>
  static void forward(const Inputs<T>& in, A* weights, T* to) {
    const auto [B, H, N, D, C] = in.shape;
    const int64_t slots = C + 1, scratch = slots * kLanes<A> + vectors_for<A>(D) * kLanes<A>;
    with_sizes<A>(vectors_for<A>(D), slots, [&, B = B, H = H, N = N, D = D](auto nv, auto s) {
      parallel(B * H, head_grain(in.shape), [&](int64_t begin, int64_t end) {
        const std::unique_ptr<A[]> room(new A[static_cast<size_t>(scratch)]);
        in.template each_head<nv(), s()>(begin, end, 0, [&](const auto& head, int64_t b, int64_t h, A*) {
          head.forward(to + (b * N * H + h) * D, H * D,
                       weights == nullptr ? nullptr : weights + (b * H + h) * slots * N, room.get());
        });
      });
    });
  }

  template <class T, class A = Accumulate<T>>
  static void backward(const Inputs<T>& in, const Strided<T>& grad, const A* kept, T* to, A* d_bias, A* d_key,
                       A* d_value) {
    constexpr int64_t W = kLanes<A>;
    const AttentionShape& shape = in.shape;
    const int64_t B = shape.B, H = shape.H, N = shape.N, D = shape.D, slots = shape.slots();
    const int64_t padded = vectors_for<A>(D) * W, rows = N * padded;
    // One row for each (b, h, slot), added up over b when all threads are done.
    const auto parts = [&](const A* wanted, int64_t width) {
      return std::vector<A>(static_cast<size_t>(wanted != nullptr ? B * H * slots * width : 0), A(0));
    };
    std::vector<A> of_bias = parts(d_bias, W), of_key = parts(d_key, padded), of_value = parts(d_value, padded);
    with_sizes<A>(vectors_for<A>(D), slots, [&](auto nv, auto s) {
      parallel(B * H, head_grain(shape), [&](int64_t begin, int64_t end) {
        const std::unique_ptr<A[]> room(new A[static_cast<size_t>(2 * slots * W + padded)]);
        in.template each_head<nv(), s()>(begin, end, 3, [&](const auto& head, int64_t b, int64_t h, A* more) {
          A *const dk = more, *const dv = more + rows;
          std::fill(dk, dv + rows, A(0));
          const Rows<A> g = rows_of<T, A>(grad, b, h, shape, dv + rows);
          const int64_t item = b * H + h;
          const auto part = [&](std::vector<A>& of, int64_t width) {
            return of.empty() ? nullptr : of.data() + item * slots * width;
          };
          T* const first = to + (b * N * 3 * H + h) * D;
          head.backward(g, kept + item * slots * N, first, 3 * H * D, dk, dv, part(of_bias, W), part(of_key, padded),
                        part(of_value, padded), room.get());
          for (int64_t i = 0; i < N; ++i) {
            T* const row = first + i * 3 * H * D;
            store_row(dk + i * padded, D, row + H * D);
            store_row(dv + i * padded, D, row + 2 * H * D);
          }
        });
      });
    });
    if (d_bias != nullptr) {
      for (int64_t i = 0; i < B * H * slots; ++i) of_bias[i * W] = fold_sum<A>(load(of_bias.data() + i * W));
      sum_parts(of_bias, B, H * slots, W, 1, d_bias);
    }
    if (d_key != nullptr) sum_parts(of_key, B, H * slots, padded, D, d_key);
    if (d_value != nullptr) sum_parts(of_value, B, H * slots, padded, D, d_value);
  }
};

}  // namespace
}  // namespace poh

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) {
  using Ops = poh::AttentionOps<poh::CpuAttention>;
  m.impl("neighbor_attention", TORCH_BOX(&Ops::forward));
  m.impl("neighbor_attention_backward", TORCH_BOX(&Ops::backward));
}
