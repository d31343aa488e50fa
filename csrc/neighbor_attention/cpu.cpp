// Attention of every cell to itself and its candidates, forward and backward, one head of one maze at a time.
// Dot products run along a row; their sums are then turned so that W cells lie across the lanes for the softmax.
// Each thread owns whole heads, and with them the rows of dk and dv it adds to: no races, and one order of sums.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "neighbor_attention/cpu_head.h"

namespace poh {
namespace {

template <class T>
struct Inputs {
  using A = Accumulate<T>;
  Strided<T> q, k, v;
  std::vector<A> bias, key_offset, value_offset;
  Neighbors neighbors;
  A scale;

  Inputs(const AttentionShape& shape, const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& candidates,
         const std::optional<Tensor>& bias_, const std::optional<Tensor>& key_offset_,
         const std::optional<Tensor>& value_offset_)
      : q(q_),
        k(k_),
        v(v_),
        bias(table_of<A>(bias_, shape.H * shape.slots(), 1, true)),
        key_offset(table_of<A>(key_offset_, shape.H * shape.slots(), shape.D, false)),
        value_offset(table_of<A>(value_offset_, shape.H * shape.slots(), shape.D, false)),
        neighbors(candidates, shape, kLanes<A>),
        scale(attention_scale<A>(shape.D)) {}

  // f(head, room): room for `more` rows of a head beyond its q, k and v. The rows of q are copied to the room's start.
  template <int NV, int S, class F>
  void each_head(const AttentionShape& shape, int64_t begin, int64_t end, int64_t more, const F& f) const {
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

AttentionShape shape_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& candidates) {
  check(q.dim() == 4, "q must have shape [B, H, N, Dh]");
  check(q.is_cpu() && k.is_cpu() && v.is_cpu(), "every tensor must be on the CPU");
  for (const Tensor* t : {&k, &v}) {
    check(t->dim() == 4 && t->scalar_type() == q.scalar_type(), "k and v must have the shape and dtype of q");
    for (int64_t d = 0; d < 4; ++d) check(t->size(d) == q.size(d), "k and v must have the shape and dtype of q");
  }
  check(candidates.dim() == 3, "candidates must have shape [B, N, C]");
  check(q.size(3) >= 1, "q must have Dh >= 1");
  return {q.size(0), q.size(1), q.size(2), q.size(3), candidates.size(2)};
}

// Heads a thread must have to be worth starting.
int64_t head_grain(const AttentionShape& shape) {
  return std::max<int64_t>(1, 16384 / (shape.N * shape.slots() * shape.D + 1));
}

std::tuple<Tensor, Tensor> neighbor_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                              const Tensor& candidates, const std::optional<Tensor>& bias,
                                              const std::optional<Tensor>& key_offset,
                                              const std::optional<Tensor>& value_offset, bool save) {
  const AttentionShape shape = shape_of(q, k, v, candidates);
  const auto [B, H, N, D, C] = shape;
  const Tensor out = in_huge_pages(new_empty({B, N, H, D}, q.scalar_type()));
  const ScalarType wide = q.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor kept = save ? in_huge_pages(new_empty({B, H, shape.slots(), N}, wide)) : new_empty({0}, wide);
  dispatch(q.scalar_type(), "q", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const Inputs<T> in(shape, q, k, v, candidates, bias, key_offset, value_offset);
    T* const to = data<T>(out);
    A* const weights = save ? data<A>(kept) : nullptr;
    const int64_t slots = shape.slots(), n = shape.N, h_count = shape.H, d = shape.D;
    const int64_t scratch = slots * kLanes<A> + vectors_for<A>(d) * kLanes<A>;
    with_sizes(vectors_for<A>(d), slots, [&](auto nv, auto s) {
      parallel(n > 0 ? shape.B * h_count : 0, head_grain(shape), [&](int64_t begin, int64_t end) {
        const std::unique_ptr<A[]> room(new A[static_cast<size_t>(scratch)]);
        in.template each_head<nv(), s()>(shape, begin, end, 0, [&](const auto& head, int64_t b, int64_t h, A*) {
          head.forward(to + (b * n * h_count + h) * d, h_count * d,
                       weights == nullptr ? nullptr : weights + (b * h_count + h) * slots * n, room.get());
        });
      });
    });
  });
  return {out, kept};
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

std::tuple<Tensor, Tensor, Tensor, Tensor> neighbor_attention_backward(
    const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& candidates,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& key_offset,
    const std::optional<Tensor>& value_offset, const Tensor& weights_in) {
  const AttentionShape shape = shape_of(q, k, v, candidates);
  const int64_t B = shape.B, H = shape.H, N = shape.N, D = shape.D, slots = shape.slots();
  check(grad.is_cpu() && grad.dim() == 4 && grad.size(0) == B && grad.size(1) == N && grad.size(2) == H &&
            grad.size(3) == D && grad.scalar_type() == q.scalar_type(),
        "grad must be [B, N, H, Dh], of the dtype of q");
  const ScalarType wide = q.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor weights = packed(weights_in);
  check(weights.numel() == B * H * slots * N && weights.scalar_type() == wide,
        "weights must be those of the forward pass with save=True");
  const Tensor out = in_huge_pages(new_empty({B, N, 3, H, D}, q.scalar_type()));
  const auto table = [&](const std::optional<Tensor>& t, bool offset) {
    if (!t) return new_empty({0}, wide);
    return offset ? new_empty({H, slots, D}, wide) : new_empty({H, slots}, wide);
  };
  const Tensor d_bias = table(bias, false), d_key = table(key_offset, true), d_value = table(value_offset, true);
  dispatch(q.scalar_type(), "q", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    constexpr int64_t W = kLanes<A>;
    const Inputs<T> in(shape, q, k, v, candidates, bias, key_offset, value_offset);
    const Strided<T> g_in(data<T>(grad), grad.stride(0), grad.stride(2), grad.stride(1));
    Strided<T> g_rows = g_in;
    g_rows.inner = grad.stride(3);
    T* const to = data<T>(out);
    const A* const kept = data<A>(weights);
    const int64_t padded = vectors_for<A>(D) * W, rows = N * padded;
    // One row for each (b, h, slot), added up over b when all threads are done.
    const auto parts = [&](bool wanted, int64_t width) {
      return std::vector<A>(static_cast<size_t>(wanted ? B * H * slots * width : 0), A(0));
    };
    std::vector<A> of_bias = parts(bias.has_value(), W), of_key = parts(key_offset.has_value(), padded);
    std::vector<A> of_value = parts(value_offset.has_value(), padded);
    with_sizes(vectors_for<A>(D), slots, [&](auto nv, auto s) {
      parallel(N > 0 ? B * H : 0, head_grain(shape), [&](int64_t begin, int64_t end) {
        const std::unique_ptr<A[]> room(new A[static_cast<size_t>(2 * slots * W + padded)]);
        in.template each_head<nv(), s()>(shape, begin, end, 3, [&](const auto& head, int64_t b, int64_t h, A* more) {
          A *const dk = more, *const dv = more + rows;
          std::fill(dk, dv + rows, A(0));
          const Rows<A> g = rows_of<T, A>(g_rows, b, h, shape, dv + rows);
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
    if (bias) {
      for (int64_t i = 0; i < B * H * slots; ++i) of_bias[i * W] = fold_sum<A>(load(of_bias.data() + i * W));
      sum_parts(of_bias, B, H * slots, W, 1, data<A>(d_bias));
    }
    if (key_offset) sum_parts(of_key, B, H * slots, padded, D, data<A>(d_key));
    if (value_offset) sum_parts(of_value, B, H * slots, padded, D, data<A>(d_value));
  });
  return {out, d_bias, d_key, d_value};
}

}  // namespace
}  // namespace poh

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) {
  m.impl("neighbor_attention", TORCH_BOX(&poh::neighbor_attention));
  m.impl("neighbor_attention_backward", TORCH_BOX(&poh::neighbor_attention_backward));
}
