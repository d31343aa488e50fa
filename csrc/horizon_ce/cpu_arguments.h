// The arguments common to the ops of the multi-horizon cross-entropy.
#pragma once

#include <limits>
#include <numeric>
#include <optional>

#include "horizon_ce/cpu_row_loss.h"
#include "common/cpu_tensors.h"

namespace poh {

using std::optional;

// The arguments of one call, contiguous, checked and unpacked; the logits stand apart.
struct Call {
  Tensor targets;
  optional<Tensor> rows, valid, candidates, class_weight;
  double smoothing, z_loss, softcap;
  int64_t V, C;
  Asked asked;

  struct Shape {
    int64_t B, N, V, horizons, states;
    bool wide;  // float64
  };

  Call(const Shape& shape, const Tensor& targets_, const optional<Tensor>& rows_, const optional<Tensor>& valid_,
       const optional<Tensor>& candidates_, const optional<Tensor>& class_weight_, double label_smoothing,
       int64_t ignore_index, double z_loss_, double softcap_)
      : targets(packed(targets_)),
        rows(packed(rows_)),
        valid(packed(valid_)),
        candidates(packed(candidates_)),
        class_weight(packed(class_weight_)),
        smoothing(label_smoothing),
        z_loss(z_loss_),
        softcap(softcap_),
        V(shape.V) {
    check_tensor(targets, "targets", ScalarType::Long, 2);
    const int64_t B = shape.B, N = shape.N, L = targets.size(1);
    check(targets.size(0) == B, "targets must have ", B, " sequences, got ", targets.size(0));
    check(shape.horizons >= 1, "horizons must be at least 1, got ", shape.horizons);
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
      check_tensor(*class_weight, "weight", shape.wide ? ScalarType::Double : ScalarType::Float, 1);
      check(class_weight->numel() == V, "weight must have ", V, " classes");
    }
    asked = {B, N, L, shape.horizons, shape.states, data<int64_t>(targets), data<int64_t>(rows), ignore_index};
    check_indices(asked, data<int64_t>(candidates), C, V);
  }

  template <class T>
  RowLoss<T> row_loss(const Readers& readers, LogSumExp<Accumulate<T>>* lse, uint8_t* correct) const {
    using A = Accumulate<T>;
    const A* w = data<A>(class_weight);
    const double mass = w == nullptr ? static_cast<double>(V) : std::accumulate(w, w + V, 0.0);
    const TermOptions<A> options{static_cast<A>(smoothing), static_cast<A>(z_loss)};
    return {asked,     readers,
            V,         data<bool>(valid),
            data<int64_t>(candidates), C,
            w,         static_cast<A>(mass),
            static_cast<A>(softcap), options,
            lse,       lse + asked.B * asked.N * asked.states,
            correct};
  }
};

// Rows a thread takes at a time: enough to hide the taking, few enough to share small batches.
inline int64_t rows_per_block(int64_t V) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(V, 1)); }

}  // namespace poh
