// The ops of softmax routing for both devices: here the arguments are checked and the results made, once.
#pragma once

#include <tuple>
#include <vector>

#include "common/tensors.h"
#include "routing/math.h"

namespace poh {

// Logits [..., H], contiguous, as rows of H.
struct RouteRows {
  Tensor logits;
  int64_t heads, rows;

  explicit RouteRows(const Tensor& given) : logits(packed(given, given, "logits")) {
    const int64_t dims = logits.dim();
    check(dims >= 1 && logits.size(dims - 1) >= 1, "logits must have shape [..., H] with H >= 1");
    heads = logits.size(dims - 1), rows = logits.numel() / heads;
  }

  Tensor like_logits() const { return empty_of(logits, logits.scalar_type(), logits.sizes()); }
  Tensor one_per_row() const {
    const auto sizes = logits.sizes();
    return empty_of(logits, logits.scalar_type(), {sizes.data(), sizes.size() - 1});
  }

  // t, contiguous, if it is as large as the logits.
  optional<Tensor> another(const optional<Tensor>& t, const char* name) const {
    check(!t || t->numel() == logits.numel(), name, " must have the shape of logits");
    check(!t || t->scalar_type() == logits.scalar_type(), name, " must have the dtype of logits");
    return packed(t, logits, name);
  }
};

// Device: one for the CPU and one for CUDA, with
//   forward(rows, inverse temperature, weights, entropy): either of the two results may be null.
//   sum(rows, inverse temperature, divisor, out): the sum of the entropies, divided.
//   backward(rows, inverse temperature, weights, gradient of the weights, that of the entropy, whether that is one for
//     all rows, factor of it, out): the weights, those of the forward pass, and their gradient may be null.
template <class Device>
struct RoutingOps {
  static std::tuple<Tensor, Tensor> route(const Tensor& logits, double temperature) {
    const RouteRows in(logits);
    const Tensor weights = in.like_logits(), entropy = in.one_per_row();
    dispatch(in.logits.scalar_type(), "logits", [&](auto zero) {
      using T = decltype(zero);
      const auto inverse = route_inverse_temperature<Accumulate<T>>(temperature);
      if (in.rows > 0) Device::template forward<T>(in, inverse, data<T>(weights), data<T>(entropy));
    });
    return {weights, entropy};
  }

  static Tensor entropy(const Tensor& logits, double temperature, int64_t reduction) {
    check(reduction >= kMean && reduction <= kNone, "reduction must be 0 (mean), 1 (sum) or 2 (none)");
    const RouteRows in(logits);
    const Tensor out = reduction == kNone ? in.one_per_row() : empty(in.logits, in.logits.scalar_type());
    dispatch(in.logits.scalar_type(), "logits", [&](auto zero) {
      using T = decltype(zero);
      const auto inverse = route_inverse_temperature<Accumulate<T>>(temperature);
      if (reduction != kNone) {
        const double divisor = reduction == kMean && in.rows > 0 ? static_cast<double>(in.rows) : 1.0;
        Device::template sum<T>(in, inverse, divisor, data<T>(out));
      } else if (in.rows > 0) {
        Device::template forward<T>(in, inverse, nullptr, data<T>(out));
      }
    });
    return out;
  }

  // weights: what route returned, if exact enough to save their exponentials (not in half precision).
  // grad_entropy: one value per row, or a single one for all rows (of a reduced entropy); times entropy_scale.
  static Tensor backward(const optional<Tensor>& grad_weights, const Tensor& grad_entropy, double entropy_scale,
                         const Tensor& logits, const optional<Tensor>& weights, double temperature) {
    const RouteRows in(logits);
    const Tensor of_entropy = packed(grad_entropy, logits, "grad_entropy");
    const bool one = of_entropy.dim() == 0;
    check(one || of_entropy.numel() == in.rows, "grad_entropy must have one value, or one per row of logits");
    check(of_entropy.scalar_type() == logits.scalar_type(), "grad_entropy must have the dtype of logits");
    const optional<Tensor> of_weights = in.another(grad_weights, "grad_weights"), p = in.another(weights, "weights");
    const Tensor out = in.like_logits();
    dispatch(in.logits.scalar_type(), "logits", [&](auto zero) {
      using T = decltype(zero);
      using A = Accumulate<T>;
      if (in.rows == 0) return;
      Device::template backward<T>(in, route_inverse_temperature<A>(temperature), data<T>(p), data<T>(of_weights),
                                   data<T>(of_entropy), one, entropy_scale, data<T>(out));
    });
    return out;
  }
};

}  // namespace poh
