// The ops of the dense form, horizon_ce and its backward, for both devices.
#pragma once

#include <tuple>

#include "horizon_ce/arguments.h"

namespace poh {

inline Reduction to_reduction(int64_t code) {
  check(code >= kMean && code <= kPositionMean, "reduction must be a code from 0 to 3, got ", code);
  return static_cast<Reduction>(code);
}

// Device: Cpu or Cuda, with
//   forward(call, logits, lse, terms, correct): writes the term of every (i, k) to terms [B, L, K], and to lse [2, B * N]
//     what the gradient needs of each row: that of all horizons, and that of horizon 1 under a mask. correct [B, L, K],
//     if not null: whether the target has the largest logit (the first of equals).
//   backward(call, logits, lse, upstream, out): writes all of out [B, N, V].
template <class Device>
struct DenseLoss {
  using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // loss, lse, coefficients, metrics

  static Forward forward(Tensor logits, Tensor targets, optional<Tensor> rows, optional<Tensor> valid,
                         optional<Tensor> candidates, optional<Tensor> horizon_weights, optional<Tensor> class_weight,
                         int64_t horizons, double label_smoothing, int64_t ignore_index, int64_t reduction_code,
                         double z_loss, double softcap, bool metrics) {
    LossArguments a{.input = checked(logits), .targets = targets, .rows = rows, .valid = valid,
                    .candidates = candidates, .class_weight = class_weight, .horizon_weights = horizon_weights,
                    .K = horizons, .smoothing = label_smoothing, .ignore = ignore_index, .z_loss = z_loss,
                    .softcap = softcap, .V = logits.size(2)};
    a.check_all<Device>();
    const Reduction reduction = to_reduction(reduction_code);
    return dispatch(logits.scalar_type(), "logits", [&](auto zero) -> Forward {
      using T = decltype(zero);
      using A = Accumulate<T>;
      optional<Tensor> mass, correct;
      const LossCall<A> call = a.template call<Device, A>(mass);
      const Tensor lse = zeros(a.input, dtype_of<A>(), 2, a.B, a.N, 2);
      const Tensor terms = zeros(a.input, dtype_of<A>(), a.B, a.L, a.K);
      if (metrics) correct = zeros(a.input, ScalarType::Byte, a.B, a.L, a.K);
      Device::template forward<T>(call, a.input, reinterpret_cast<LogSumExp<A>*>(data<A>(lse)), data<A>(terms),
                                  data<uint8_t>(correct));
      const auto [value, coefficients, measured] =
          Device::template reduce<A>(call, a.horizon_weights, reduction, terms, correct);
      return {value, lse, coefficients, measured};
    });
  }

  static Tensor backward(Tensor grad, Tensor logits, Tensor targets, optional<Tensor> rows, optional<Tensor> valid,
                         optional<Tensor> candidates, optional<Tensor> class_weight, Tensor lse, Tensor coefficients,
                         double label_smoothing, int64_t ignore_index, double z_loss, double softcap) {
    check(coefficients.dim() == 2, "coefficients must have 2 dimensions");
    LossArguments a{.input = checked(logits), .targets = targets, .rows = rows, .valid = valid,
                    .candidates = candidates, .class_weight = class_weight, .K = coefficients.size(1),
                    .smoothing = label_smoothing, .ignore = ignore_index, .z_loss = z_loss, .softcap = softcap,
                    .V = logits.size(2)};
    a.check_all<Device>();
    const Tensor given = packed(grad, logits, "grad");
    return dispatch(logits.scalar_type(), "logits", [&](auto zero) {
      using T = decltype(zero);
      using A = Accumulate<T>;
      check_form(lse, "lse", dtype_of<A>(), 4);
      check(lse.is_contiguous() && lse.numel() == 4 * a.B * a.N, "lse must be that of the forward pass");
      optional<Tensor> mass;
      const LossCall<A> call = a.template call<Device, A>(mass);
      return Device::template backward<T>(call, a.input, reinterpret_cast<LogSumExp<A>*>(data<A>(lse)),
                                          a.template upstream<A>(given, coefficients));
    });
  }

 private:
  static Tensor checked(const Tensor& logits) {
    check(logits.dim() == 3, "logits must have 3 dimensions, got ", logits.dim());
    return packed(logits, logits, "logits");
  }
};

}  // namespace poh
