// The arguments of the multi-horizon cross-entropy, the same for both devices: checked once, then handed to loops and
// kernels as plain numbers and pointers.
#pragma once

#include <optional>
#include <string>

#include "common/checks.h"
#include "common/tensors.h"
#include "horizon_ce/math.h"

#if defined(__CUDACC__) || defined(POH_CUDA_EMULATION)
#include "common/device.h"
#else
#define POH_DEVICE_CHECK(ok, what)  // the CPU has looked at every index before (check_indices)
#endif

namespace poh {

// The terms: position i of batch b at horizon k = 1..K is asked for a class, and reads a row. The class is that of
// position i + k, or stands in a table by itself.
struct LossTerms {
  int64_t B, N, V, L, K, C;
  bool table;
  int64_t states;             // rows of logits for each row: 1, or K when every horizon has its own
  int64_t ignore;
  const int64_t* targets;     // [B, L], or the table [B, L, K]
  const int64_t* rows;        // [B, L], or null: position i reads row i
  const bool* valid;          // [B, N, V] or null
  const int64_t* candidates;  // [B, N, C] or null

  // The class position i of batch b is asked for at horizon k <= K; -1: no term.
  POH_HOST_DEVICE int64_t target(int64_t b, int64_t i, int64_t k) const {
    if (i >= end(k)) return -1;
    const int64_t y = targets[place(b, i, k)];
    if (y == ignore) return -1;
    POH_DEVICE_CHECK(y >= 0 && y < V, "targets: a class is out of range");
    return y;
  }
  // The positions i that horizon k has a target for are those before.
  POH_HOST_DEVICE int64_t end(int64_t k) const { return table ? L : L - k; }
  POH_HOST_DEVICE int64_t place(int64_t b, int64_t i, int64_t k) const {
    return table ? (b * L + i) * K + k - 1 : b * L + i + k;
  }
  // The row that position i of batch b reads; -1: none.
  POH_HOST_DEVICE int64_t row_read(int64_t b, int64_t i) const {
    if (rows == nullptr) return i;
    const int64_t r = rows[b * L + i];
    if (skips_row(r, ignore)) return -1;
    POH_DEVICE_CHECK(r >= 0 && r < N, "rows: a row is out of range");
    return r;
  }
  POH_HOST_DEVICE bool has_mask() const { return valid != nullptr || candidates != nullptr; }
  // Whether candidate j of row q = b * N + r is not a padding and the first of its kind.
  POH_HOST_DEVICE bool counts(int64_t q, int64_t j) const {
    const int64_t v = candidates[q * C + j];
    POH_DEVICE_CHECK(v >= -1 && v < V, "candidates: a class is out of range");
    for (int64_t i = 0; i < j; ++i) {
      if (candidates[q * C + i] == v) return false;
    }
    return v >= 0;
  }
  POH_HOST_DEVICE bool allowed(int64_t q, int64_t v) const {
    if (valid != nullptr) return valid[q * V + v];
    for (int64_t j = 0; j < C; ++j) {
      if (candidates[q * C + j] == v) return true;
    }
    return false;
  }
};

// And how they are weighed. A is the dtype of all arithmetic.
template <class A>
struct LossCall : LossTerms {
  const A* class_weight;  // [V] or null
  const A* total_mass;    // their sum, where they are
  TermOptions<A> options;
  A softcap;  // 0: none

  POH_HOST_DEVICE A weight(int64_t v) const { return class_weight == nullptr ? A(1) : class_weight[v]; }
  POH_HOST_DEVICE A mass() const { return class_weight == nullptr ? static_cast<A>(V) : *total_mass; }
  POH_HOST_DEVICE A cap(A z) const { return softcap == 0 ? z : softcap * fast_tanh(z / softcap); }
  template <int kCount>
  POH_HOST_DEVICE void cap_all(A (&z)[kCount]) const {
    if (softcap == 0) return;
    for (int j = 0; j < kCount; ++j) z[j] = cap(z[j]);
  }
  POH_HOST_DEVICE A slope(A capped) const { return softcap == 0 ? A(1) : cap_slope(capped, softcap); }
};

// d loss / d term: coefficients [L, K] times the gradient of the value: 1 (null), one number or [B, L, K].
template <class A>
struct Upstream {
  const A* coefficients;
  const A* grad;
  bool per_term;
  int64_t L, K;

  POH_HOST_DEVICE A operator()(int64_t b, int64_t i, int64_t k) const {
    const int64_t place = i * K + k - 1;
    if (grad == nullptr) return coefficients[place];
    return coefficients[place] * grad[per_term ? b * L * K + place : 0];
  }
};

// The arguments of one call. Device: what the device has of its own, such as CpuLoss in cpu_terms.h.
struct LossArguments {
  const Tensor input;  // logits or hidden states [B, N, ...]: the device and dtype
  Tensor targets;
  optional<Tensor> rows, valid, candidates, class_weight, horizon_weights = std::nullopt;
  int64_t K;
  double smoothing;
  int64_t ignore;
  double z_loss, softcap;
  int64_t V, states = 1;
  int64_t B = input.size(0), N = input.size(1), L = 0, C = 0;

  // Makes the tensors contiguous, and checks them for what could make a kernel read what is not there.
  template <class Device>
  void check_all() {
    const ScalarType weight_dtype = input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    targets = packed(targets, input, "targets");
    for (auto [t, name] : {std::pair{&rows, "rows"}, {&valid, "valid"}, {&candidates, "candidates"},
                           {&class_weight, "weight"}, {&horizon_weights, "horizon_weights"}}) {
      if (*t) *t = packed(**t, input, name);
    }
    const bool table = targets.dim() == 3;
    check_form(targets, "targets", ScalarType::Long, table ? 3 : 2);
    check(!table || targets.size(2) == K, "targets must have ", K, " horizons");
    L = targets.size(1);
    check(targets.size(0) == B, "targets must have ", B, " sequences, got ", targets.size(0));
    check(K >= 1, "horizons must be at least 1, got ", K);
    check(states == 1 || states == K, "there must be a state for each horizon, got ", states);
    check(V <= std::numeric_limits<int32_t>::max(), "logits must have fewer than 2^31 classes, got ", V);
    check(rows || L <= N, "targets have ", L, " positions but logits only ", N, " rows: pass rows");
    if (rows) {
      check_form(*rows, "rows", ScalarType::Long, 2);
      check(rows->size(0) == B && rows->size(1) == L, "rows must have the shape of targets");
    }
    if (valid) {
      check_form(*valid, "valid", ScalarType::Bool, 3);
      check(valid->numel() == B * N * V, "valid must have the shape of logits");
    }
    if (candidates) {
      check_form(*candidates, "candidates", ScalarType::Long, 3);
      C = candidates->size(2);
      check(candidates->size(0) == B && candidates->size(1) == N, "candidates must have a list for each row");
    }
    if (class_weight) {
      check_form(*class_weight, "weight", weight_dtype, 1);
      check(class_weight->numel() == V, "weight must have ", V, " classes");
    }
    if (horizon_weights) {
      check(horizon_weights->dim() == 1 && horizon_weights->size(0) == K, "horizon_weights must have ", K, " elements");
      horizon_weights = to_dtype(*horizon_weights, weight_dtype);
    }
    if (Device::checks_indices()) check_indices<Device>();
  }

  // mass: room for the sum of the class weights; it must outlive the kernels' launches.
  template <class Device, class A>
  LossCall<A> call(optional<Tensor>& mass) const {
    if (class_weight) mass = Device::template total<A>(*class_weight);
    return {{B, N, V, L, K, C, targets.dim() == 3, states, ignore, data<int64_t>(targets), data<int64_t>(rows),
             data<bool>(valid), data<int64_t>(candidates)},
            data<A>(class_weight),
            data<A>(mass),
            {static_cast<A>(smoothing), static_cast<A>(z_loss)},
            static_cast<A>(softcap)};
  }

  // From the gradient of the loss (contiguous) and the coefficients of the forward pass.
  template <class A>
  Upstream<A> upstream(const Tensor& grad, const Tensor& coefficients) const {
    check_form(coefficients, "coefficients", dtype_of<A>(), 2);
    check(coefficients.is_contiguous() && coefficients.size(0) == L && coefficients.size(1) == K,
          "coefficients must be those of the forward pass");
    check(grad.scalar_type() == dtype_of<A>(), "the gradient of the loss must have its dtype");
    const bool per_term = grad.dim() == 3;
    check(grad.numel() == (per_term ? B * L * K : 1), "the gradient of the loss must have its shape");
    return {data<A>(coefficients), data<A>(grad), per_term, L, K};
  }

 private:
  // Raises IndexError for the first target, row or candidate out of range.
  template <class Device>
  void check_indices() const {
    const int64_t skipping = skipping_row(ignore);
    const auto place = [this](const char* name, int64_t at, int64_t value, bool table = false) {
      const int64_t k = table ? at % K : 0, i = table ? at / K : at;
      return message(name, "[", i / L, ", ", i % L, table ? message(", ", k) : "", "] is ", value, ", but there are ");
    };
    if (const auto bad = Device::first_outside(targets, 0, V, ignore)) {
      index_error(place("targets", bad->at, bad->value, targets.dim() == 3), V, " classes (ignore_index is ", ignore,
                  ")");
    }
    if (rows) {
      if (const auto bad = Device::first_outside(*rows, -1, N, skipping)) {
        const std::string also = skipping == -1 ? "" : message(", and so does the ignore_index ", skipping);
        index_error(place("rows", bad->at, bad->value), N, " rows (-1 skips a position", also, ")");
      }
    }
    if (candidates) {
      if (const auto bad = Device::first_outside(*candidates, -1, V, -1)) {
        index_error("candidates[", bad->at / C / N, ", ", bad->at / C % N, ", ", bad->at % C, "] is ", bad->value,
                    ", but there are ", V, " classes (-1 pads)");
      }
    }
  }
};

}  // namespace poh
