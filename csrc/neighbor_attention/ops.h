// The ops of neighbour attention for both devices: here the arguments are checked and the results made, once.
#pragma once

#include <tuple>

#include "common/tensors.h"
#include "neighbor_attention/math.h"

namespace poh {

struct AttentionShape {
  int64_t B, H, N, D, C;
  POH_HOST_DEVICE int64_t slots() const { return C + 1; }
};

// A [B, H, N, Dh] tensor by its strides.
template <class T>
struct Strided {
  const T* at;
  int64_t batch, head, cell, inner;

  POH_HOST_DEVICE const T* row(int64_t b, int64_t h, int64_t i) const { return at + b * batch + h * head + i * cell; }
};

// head, cell: which dimensions they are.
template <class T>
Strided<T> strided(const Tensor& t, int64_t head = 1, int64_t cell = 2) {
  return {data<T>(t), t.stride(0), t.stride(head), t.stride(cell), t.stride(3)};
}

// The tensors of a call, checked for what could make a loop or a kernel read what is not there.
struct AttentionArguments {
  Tensor q, k, v, candidates;
  optional<Tensor> bias, key_offset, value_offset;
  ScalarType wide;  // the dtype of all arithmetic
  AttentionShape shape{};

  AttentionArguments(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& candidates_,
                     const optional<Tensor>& bias_, const optional<Tensor>& key_offset_,
                     const optional<Tensor>& value_offset_)
      : q(q_), k(k_), v(v_), candidates(packed(candidates_, q_, "candidates")), bias(packed(bias_, q_, "bias")),
        key_offset(packed(key_offset_, q_, "key_offset")), value_offset(packed(value_offset_, q_, "value_offset")),
        wide(q_.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float) {
    check(q.dim() == 4, "q must have shape [B, H, N, Dh]");
    for (const Tensor* t : {&k, &v}) {
      check(t->device() == q.device(), "k and v must be on the device of q");
      check(t->dim() == 4 && t->scalar_type() == q.scalar_type(), "k and v must have the shape and dtype of q");
      for (int64_t d = 0; d < 4; ++d) check(t->size(d) == q.size(d), "k and v must have the shape and dtype of q");
    }
    check(q.size(3) >= 1, "q must have Dh >= 1");
    check(candidates.dim() == 3, "candidates must have shape [B, N, C]");
    check_form(candidates, "candidates", ScalarType::Long, 3);
    shape = {q.size(0), q.size(1), q.size(2), q.size(3), candidates.size(2)};
    check(candidates.size(0) == shape.B && candidates.size(1) == shape.N, "candidates must have a list for each cell");
    const int64_t rows = shape.H * shape.slots();
    const int64_t numbers = rows * shape.D;
    for (const auto& [t, n] : {std::pair{&bias, rows}, {&key_offset, numbers}, {&value_offset, numbers}}) {
      check(!*t || (*t)->numel() == n, "bias and offsets must have a row for each head and slot");
      check(!*t || (*t)->scalar_type() == q.scalar_type() || (*t)->scalar_type() == wide,
            "bias and offsets must have the dtype of q, or float32");
    }
  }
};

// Device: one for the CPU and one for CUDA, with Call<T>, made of the arguments, and
//   forward(call, weights, out): the weights are null if they are not to be kept and kNeedsWeights is not set.
//   backward(call, gradient of out, weights, out, those of bias, key and value offsets): the last three may be null.
template <class Device>
struct AttentionOps {
  static std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& candidates,
                                            const optional<Tensor>& bias, const optional<Tensor>& key_offset,
                                            const optional<Tensor>& value_offset, bool save) {
    const AttentionArguments a(q, k, v, candidates, bias, key_offset, value_offset);
    const auto& [B, H, N, D, C] = a.shape;
    const bool kept = save || Device::kNeedsWeights;
    const Tensor out = in_huge_pages(empty(q, q.scalar_type(), B, N, H, D));
    const Tensor weights = kept ? in_huge_pages(empty(q, a.wide, B, H, C + 1, N)) : empty(q, a.wide, 0);
    const bool work = B * H * N > 0;
    dispatch(q.scalar_type(), "q", [&](auto zero) {
      using T = decltype(zero);
      using A = Accumulate<T>;
      const typename Device::template Call<T> call(a);
      if (work) Device::forward(call, kept ? data<A>(weights) : static_cast<A*>(nullptr), data<T>(out));
    });
    return {out, save ? weights : empty(q, a.wide, 0)};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
      const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& candidates,
      const optional<Tensor>& bias, const optional<Tensor>& key_offset, const optional<Tensor>& value_offset,
      const Tensor& weights_in) {
    const AttentionArguments a(q, k, v, candidates, bias, key_offset, value_offset);
    const int64_t B = a.shape.B, H = a.shape.H, N = a.shape.N, D = a.shape.D, slots = a.shape.slots();
    check(grad.device() == q.device(), "grad must be on the device of q");
    check(grad.dim() == 4 && grad.size(0) == B && grad.size(1) == N && grad.size(2) == H && grad.size(3) == D &&
              grad.scalar_type() == q.scalar_type(),
          "grad must be [B, N, H, Dh], of the dtype of q");
    const Tensor weights = packed(weights_in, q, "weights");
    check(weights.numel() == B * H * slots * N && weights.scalar_type() == a.wide,
          "weights must be those of the forward pass with save=True");
    const Tensor out = in_huge_pages(empty(q, q.scalar_type(), B, N, 3, H, D));
    const Tensor d_bias = bias ? zeros(q, a.wide, H, slots) : empty(q, a.wide, 0);
    const Tensor d_key = key_offset ? zeros(q, a.wide, H, slots, D) : empty(q, a.wide, 0);
    const Tensor d_value = value_offset ? zeros(q, a.wide, H, slots, D) : empty(q, a.wide, 0);
    dispatch(q.scalar_type(), "q", [&](auto zero) {
      using T = decltype(zero);
      using A = Accumulate<T>;
      const typename Device::template Call<T> call(a);
      const auto table = [](const optional<Tensor>& given, const Tensor& t) { return given ? data<A>(t) : nullptr; };
      if (B * H * N == 0) return;
      Device::backward(call, strided<T>(grad, 2, 1), data<const A>(weights), data<T>(out), table(bias, d_bias),
                       table(key_offset, d_key), table(value_offset, d_value));
    });
    return {out, d_bias, d_key, d_value};
  }
};

}  // namespace poh
