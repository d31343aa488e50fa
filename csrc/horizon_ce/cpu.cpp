// Multi-horizon cross-entropy of dense logits: threads over rows, one log-sum-exp per row read. (Where a mask leaves
// few classes, cpu_few_allowed.h takes over.)
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "horizon_ce/cpu_arguments.h"
#include "horizon_ce/cpu_few_allowed.h"
#include "horizon_ce/cpu_reduce.h"
#include "common/parallel.h"

namespace poh {
namespace {

Call::Shape shape_of(const Tensor& logits, int64_t horizons) {
  check(logits.dim() == 3, "logits must have 3 dimensions, got ", logits.dim());
  const bool wide = logits.scalar_type() == ScalarType::Double;
  return {logits.size(0), logits.size(1), logits.size(2), horizons, 1, wide};
}

template <class A>
LogSumExp<A>* pairs(const Tensor& lse) {
  return reinterpret_cast<LogSumExp<A>*>(data<A>(lse));
}

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // loss, lse, coefficients, metrics

// Writes terms [B, L, K] and lse.
template <class T, class A>
void forward_rows(const Call& call, const T* z, A* terms, LogSumExp<A>* lse, uint8_t* correct) {
  const Asked& a = call.asked;
  if constexpr (std::is_same_v<T, A>) {
    const FewAllowed<A> few(call, lse + a.B * a.N);
    if (FewAllowed<A>::suits(call) && correct == nullptr && few.forward(z, terms)) return;
  }
  const Readers readers(a);
  const RowLoss<T> loss = call.row_loss<T>(readers, lse, correct);
  parallel_blocks(
      readers.read.size(), rows_per_block(call.V), [] { return RowScratch<A>(); },
      [&](int64_t begin, int64_t end, RowScratch<A>& scratch) {
        for (int64_t j = begin; j < end; ++j) {
          const int64_t q = readers.read[j];
          loss.forward(q, z + q * call.V, terms + q / a.N * a.L * a.K, scratch);
        }
      });
}

template <class T>
Forward forward(const Call& call, const Tensor& logits, const optional<Tensor>& horizon_weights, Reduction reduction, bool metrics) {
  using A = Accumulate<T>;
  const Asked& a = call.asked;
  const ScalarType dtype = dtype_of<A>();
  Tensor lse = new_zeros({2, a.B, a.N, 2}, dtype);
  Tensor terms = new_zeros({a.B, a.L, a.K}, dtype);
  std::vector<uint8_t> correct(metrics ? a.B * a.L * a.K : 0);
  forward_rows<T, A>(call, data<T>(logits), data<A>(terms), pairs<A>(lse), metrics ? correct.data() : nullptr);
  const A* w = data<A>(call.class_weight);
  Tensor each = coefficients<A>(a, horizon_weights, w, reduction);
  Tensor measured = measure<A>(a, terms, correct.data(), metrics, w);  // before terms are weighted
  Tensor value = reduce<A>(a, terms, each, reduction);
  return {value, lse, each, measured};
}

template <class T>
Tensor backward(const Call& call, const Tensor& logits, const Tensor& grad, const Tensor& lse, const Tensor& coefficients) {
  using A = Accumulate<T>;
  const Asked& a = call.asked;
  const Coefficients<A> coefficient(a, grad, coefficients);
  Tensor out = new_large(logits);
  const T* z = data<T>(logits);
  T* g = data<T>(out);
  if constexpr (std::is_same_v<T, A>) {
    const FewAllowed<A> few(call, pairs<A>(lse) + a.B * a.N);
    if (FewAllowed<A>::suits(call) && few.backward(z, coefficient, g)) return out;
  }
  const Readers readers(a);
  const RowLoss<T> loss = call.row_loss<T>(readers, pairs<A>(lse), nullptr);
  parallel_blocks(
      a.B * a.N, rows_per_block(call.V), [] { return RowScratch<A>(); },
      [&](int64_t begin, int64_t end, RowScratch<A>& scratch) {
        for (int64_t q = begin; q < end; ++q) {
          if (readers.start[q] == readers.start[q + 1]) {
            std::memset(static_cast<void*>(g + q * call.V), 0, call.V * sizeof(T));
          } else {
            loss.backward(q, z + q * call.V, g + q * call.V, coefficient, scratch);
          }
        }
      });
  return out;
}

Forward horizon_ce(Tensor logits, Tensor targets, optional<Tensor> rows, optional<Tensor> valid,
                   optional<Tensor> candidates, optional<Tensor> horizon_weights, optional<Tensor> class_weight,
                   int64_t horizons, double label_smoothing, int64_t ignore_index, int64_t reduction, double z_loss,
                   double softcap, bool metrics) {
  const Call call(shape_of(logits, horizons), targets, rows, valid, candidates, class_weight, label_smoothing,
                  ignore_index, z_loss, softcap);
  return dispatch(logits.scalar_type(), "logits", [&]<class T>(T) {
    return forward<T>(call, packed(logits), horizon_weights, to_reduction(reduction), metrics);
  });
}

Tensor horizon_ce_backward(Tensor grad, Tensor logits, Tensor targets, optional<Tensor> rows,
                           optional<Tensor> valid, optional<Tensor> candidates, optional<Tensor> class_weight,
                           Tensor lse, Tensor coefficients, double label_smoothing, int64_t ignore_index,
                           double z_loss, double softcap) {
  check(coefficients.dim() == 2, "coefficients must have 2 dimensions");
  const Call call(shape_of(logits, coefficients.size(1)), targets, rows, valid, candidates, class_weight,
                  label_smoothing, ignore_index, z_loss, softcap);
  return dispatch(logits.scalar_type(), "logits", [&]<class T>(T) {
    const ScalarType dtype = dtype_of<Accumulate<T>>();
    check_tensor(lse, "lse", dtype, 4);
    check(lse.numel() == 4 * call.asked.B * call.asked.N, "lse must be that of the forward pass");
    check_tensor(coefficients, "coefficients", dtype, 2);
    return backward<T>(call, packed(logits), grad, lse, coefficients);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) {
  m.impl("horizon_ce", TORCH_BOX(&horizon_ce));
  m.impl("horizon_ce_backward", TORCH_BOX(&horizon_ce_backward));
}

}  // namespace poh
