// Multi-horizon cross-entropy of dense logits.
#include "horizon_ce/cuda_arguments.h"
#include "horizon_ce/cuda_kernels.h"

namespace poh::cuda {
namespace {

Call::Form form_of(const Tensor& logits, int64_t horizons) {
  check(logits.dim() == 3, "logits must have 3 dimensions, got ", logits.dim());
  return {logits.size(0), logits.size(1), logits.size(2), horizons, 1};
}

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // loss, lse, coefficients, metrics

Forward horizon_ce(Tensor logits_, Tensor targets, optional<Tensor> rows, optional<Tensor> valid,
                   optional<Tensor> candidates, optional<Tensor> horizon_weights, optional<Tensor> class_weight,
                   int64_t horizons, double label_smoothing, int64_t ignore_index, int64_t reduction, double z_loss,
                   double softcap, bool metrics) {
  const Tensor logits = packed(logits_, logits_, "logits");
  const Call call(logits, form_of(logits, horizons), targets, rows, valid, candidates, class_weight, label_smoothing,
                  ignore_index, z_loss, softcap);
  return dispatch(logits.scalar_type(), "logits", [&](auto zero) -> Forward {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const optional<Tensor> by_horizon = call.by_horizon<A>(horizon_weights);
    Tensor mass = logits;
    const HorizonCall<T, A> c{call.asked<A>(mass), data<T>(logits), nullptr, call.B * call.N};
    const Tensor lse = zeros(logits, dtype_of<A>(), 2, c.B, c.N, 2);
    const Tensor terms = zeros(logits, dtype_of<A>(), c.B, c.L, c.K);
    optional<Tensor> correct;
    if (metrics) correct = zeros(logits, ScalarType::Byte, c.B, c.L, c.K);
    forward(logits, c, reinterpret_cast<LogSumExp<A>*>(data<A>(lse)), data<A>(terms), data<uint8_t>(correct));
    const auto [value, coefficients, measured] = reduce<A>(c, terms, correct, by_horizon, to_reduction(reduction));
    return {value, lse, coefficients, measured};
  });
}

Tensor horizon_ce_backward(Tensor grad, Tensor logits_, Tensor targets, optional<Tensor> rows, optional<Tensor> valid,
                           optional<Tensor> candidates, optional<Tensor> class_weight, Tensor lse,
                           Tensor coefficients, double label_smoothing, int64_t ignore_index, double z_loss,
                           double softcap) {
  check(coefficients.dim() == 2, "coefficients must have 2 dimensions");
  const Tensor logits = packed(logits_, logits_, "logits"), given = packed(grad, logits_, "grad");
  const Call call(logits, form_of(logits, coefficients.size(1)), targets, rows, valid, candidates, class_weight,
                  label_smoothing, ignore_index, z_loss, softcap);
  return dispatch(logits.scalar_type(), "logits", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    check_form(lse, "lse", dtype_of<A>(), 4);
    check(lse.is_contiguous() && lse.numel() == 4 * call.B * call.N, "lse must be that of the forward pass");
    const Tensor out = torch::stable::new_empty(logits, logits.sizes());
    Tensor mass = logits;
    const HorizonCall<T, A> c{call.asked<A>(mass), data<T>(logits), nullptr, call.B * call.N};
    backward(logits, c, reinterpret_cast<const LogSumExp<A>*>(data<A>(lse)), call.upstream<A>(given, coefficients),
             data<T>(out));
    return out;
  });
}

}  // namespace
}  // namespace poh::cuda

POH_CUDA_LIBRARY(m) {
  m.impl("horizon_ce", TORCH_BOX(&poh::cuda::horizon_ce));
  m.impl("horizon_ce_backward", TORCH_BOX(&poh::cuda::horizon_ce_backward));
}
