// Multi-horizon cross-entropy of dense logits: threads over rows, one log-sum-exp per row read.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <numeric>

#include "cpu/horizon_ce.h"
#include "cpu/horizon_ce_reduce.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"

namespace poh {
namespace {

using std::optional;

// The arguments of one call, contiguous and unpacked.
struct Call {
  Tensor logits, targets;
  optional<Tensor> rows, valid, candidates, class_weight;
  double smoothing, z_loss, softcap;
  int64_t V, C;
  Asked asked;

  Call(const Tensor& logits_, const Tensor& targets_, const optional<Tensor>& rows_, const optional<Tensor>& valid_,
       const optional<Tensor>& candidates_, const optional<Tensor>& class_weight_, int64_t horizons,
       double label_smoothing, int64_t ignore_index, double z_loss_, double softcap_)
      : logits(packed(logits_)),
        targets(packed(targets_)),
        rows(packed(rows_)),
        valid(packed(valid_)),
        candidates(packed(candidates_)),
        class_weight(packed(class_weight_)),
        smoothing(label_smoothing),
        z_loss(z_loss_),
        softcap(softcap_) {
    check(logits.dim() == 3, "logits must have 3 dimensions, got ", logits.dim());
    check_tensor(targets, "targets", ScalarType::Long, 2);
    const int64_t B = logits.size(0), N = logits.size(1), L = targets.size(1);
    V = logits.size(2);
    check(targets.size(0) == B, "targets must have ", B, " sequences, got ", targets.size(0));
    check(horizons >= 1, "horizons must be at least 1, got ", horizons);
    if (rows) {
      check_tensor(*rows, "rows", ScalarType::Long, 2);
      check(rows->size(0) == B && rows->size(1) == L, "rows must have the shape of targets");
    } else {
      check(L <= N, "targets have ", L, " positions but logits only ", N, " rows: pass rows");
    }
    if (valid) {
      check_tensor(*valid, "valid", ScalarType::Bool, 3);
      check(valid->numel() == B * N * V, "valid must have the shape of logits");
    }
    C = 0;
    if (candidates) {
      check_tensor(*candidates, "candidates", ScalarType::Long, 3);
      C = candidates->size(2);
      check(candidates->size(0) == B && candidates->size(1) == N, "candidates must have a list for each row");
    }
    check(V <= std::numeric_limits<int32_t>::max(), "logits must have fewer than 2^31 classes, got ", V);
    if (class_weight) {
      const bool wide = logits.scalar_type() == ScalarType::Double;
      check_tensor(*class_weight, "weight", wide ? ScalarType::Double : ScalarType::Float, 1);
      check(class_weight->numel() == V, "weight must have ", V, " classes");
    }
    asked = {B, N, L, horizons, 1, data<int64_t>(targets), data<int64_t>(rows), ignore_index};
    check_indices(asked, data<int64_t>(candidates), C, V);
  }

  template <class T>
  RowLoss<T> row_loss(const Readers& readers, const Tensor& lse, uint8_t* correct) const {
    using A = Accumulate<T>;
    LogSumExp<A>* pairs = reinterpret_cast<LogSumExp<A>*>(data<A>(lse));
    const A* w = data<A>(class_weight);
    const double mass = w == nullptr ? static_cast<double>(V) : std::accumulate(w, w + V, 0.0);
    const TermOptions<A> options{static_cast<A>(smoothing), static_cast<A>(z_loss)};
    return {asked,     readers,
            V,         data<bool>(valid),
            data<int64_t>(candidates), C,
            w,         static_cast<A>(mass),
            static_cast<A>(softcap), options,
            pairs,     pairs + asked.B * asked.N,
            correct};
  }
};

// Rows a thread takes at a time: enough to hide the taking, few enough to share small batches.
int64_t rows_per_block(int64_t V) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(V, 1)); }

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // loss, lse, coefficients, metrics

template <class T>
Forward forward(const Call& call, const optional<Tensor>& horizon_weights, Reduction reduction, bool metrics) {
  using A = Accumulate<T>;
  const Asked& a = call.asked;
  const ScalarType dtype = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  const Readers readers(a);
  Tensor lse = torch::stable::new_zeros(call.logits, {2, a.B, a.N, 2}, dtype);
  Tensor terms = torch::stable::new_zeros(call.logits, {a.B, a.L, a.K}, dtype);
  std::vector<uint8_t> correct(metrics ? a.B * a.L * a.K : 0);
  const RowLoss<T> loss = call.row_loss<T>(readers, lse, metrics ? correct.data() : nullptr);
  const T* z = data<T>(call.logits);
  A* term = data<A>(terms);
  parallel_blocks(
      readers.read.size(), rows_per_block(call.V), [] { return RowScratch<A>(); },
      [&](int64_t begin, int64_t end, RowScratch<A>& scratch) {
        for (int64_t j = begin; j < end; ++j) {
          const int64_t q = readers.read[j];
          loss.forward(q, z + q * call.V, term + q / a.N * a.L * a.K, scratch);
        }
      });
  Tensor measured = measure<A>(a, terms, correct, data<A>(call.class_weight));  // before terms are weighted
  auto [value, coefficients] = reduce<A>(a, terms, horizon_weights, data<A>(call.class_weight), reduction);
  return {value, lse, coefficients, measured};
}

template <class T>
Tensor backward(const Call& call, const Tensor& grad, const Tensor& lse, const Tensor& coefficients) {
  using A = Accumulate<T>;
  const Asked& a = call.asked;
  const Readers readers(a);
  const RowLoss<T> loss = call.row_loss<T>(readers, lse, nullptr);
  const Coefficients<A> coefficient(a, grad, coefficients);
  Tensor out = new_large(call.logits);
  const T* z = data<T>(call.logits);
  T* g = data<T>(out);
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
  const Call call(logits, targets, rows, valid, candidates, class_weight, horizons, label_smoothing, ignore_index,
                  z_loss, softcap);
  return dispatch(logits.scalar_type(), "logits", [&]<class T>(T) {
    return forward<T>(call, horizon_weights, to_reduction(reduction), metrics);
  });
}

Tensor horizon_ce_backward(Tensor grad, Tensor logits, Tensor targets, optional<Tensor> rows,
                           optional<Tensor> valid, optional<Tensor> candidates, optional<Tensor> class_weight,
                           Tensor lse, Tensor coefficients, double label_smoothing, int64_t ignore_index,
                           double z_loss, double softcap) {
  check(coefficients.dim() == 2, "coefficients must have 2 dimensions");
  const Call call(logits, targets, rows, valid, candidates, class_weight, coefficients.size(1), label_smoothing,
                  ignore_index, z_loss, softcap);
  return dispatch(logits.scalar_type(), "logits", [&]<class T>(T) {
    const ScalarType dtype = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
    check_tensor(lse, "lse", dtype, 4);
    check(lse.numel() == 4 * call.asked.B * call.asked.N, "lse must be that of the forward pass");
    check_tensor(coefficients, "coefficients", dtype, 2);
    return backward<T>(call, grad, lse, coefficients);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) {
  m.impl("horizon_ce", TORCH_BOX(&horizon_ce));
  m.impl("horizon_ce_backward", TORCH_BOX(&horizon_ce_backward));
}

}  // namespace poh
