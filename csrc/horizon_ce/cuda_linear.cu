// Linear multi-horizon cross-entropy: hidden states in, logits of some rows at a time and never of all of them.
//
// The rows that are read (cuda_gather.h) are taken in chunks: gathered, multiplied through torch (products.h),
// turned into terms and gradient by the kernels of the dense form (cuda_kernels.h), and multiplied again. With one
// horizon and candidates, only the logits of candidates are formed (cuda_candidates.h).
#include "horizon_ce/cuda_arguments.h"
#include "horizon_ce/cuda_kernels.h"
#include "horizon_ce/cuda_candidates.h"
#include "horizon_ce/cuda_gather.h"
#include "horizon_ce/products.h"

namespace poh::cuda {
namespace {

Shape warps_for(const Tensor& on, int64_t items) { return {blocks_for(on, items, kRowThreads / kWarp), kRowThreads}; }

// hidden [B, N, D] or [B, N, K, D], weight [V, D], bias [V]: contiguous, of one dtype and device.
struct Layer {
  Tensor hidden, weight;
  optional<Tensor> bias;
  int64_t V, D;

  Layer(const Tensor& hidden_, const Tensor& weight_, const optional<Tensor>& bias_)
      : hidden(packed(hidden_, hidden_, "hidden")),
        weight(packed(weight_, hidden_, "weight")),
        bias(packed(bias_, hidden_, "bias")) {
    check(hidden.dim() == 3 || hidden.dim() == 4, "hidden must have 3 or 4 dimensions, got ", hidden.dim());
    check_form(weight, "weight", hidden.scalar_type(), 2);
    V = weight.size(0), D = weight.size(1);
    check(hidden.size(hidden.dim() - 1) == D, "hidden must have states of ", D, " elements");
    if (bias) {
      check_form(*bias, "bias", hidden.scalar_type(), 1);
      check(bias->size(0) == V, "bias must have ", V, " classes");
    }
  }

  Call::Form form(int64_t horizons) const {
    return {hidden.size(0), hidden.size(1), V, horizons, hidden.dim() == 4 ? hidden.size(2) : 1};
  }
};

struct Gradients {
  Tensor hidden, weight, bias;
};

// Which of them, as csrc/ops.cpp numbers them.
struct Wanted {
  bool hidden, weight, bias;

  explicit Wanted(int64_t bits) : hidden(bits & 1), weight(bits & 2), bias(bits & 4) {}
};

// The terms of a call, and its gradients if wanted.
template <class T, class A = Accumulate<T>>
struct EachRow {
  const Layer& layer;
  const Asked<A>& asked;
  A* terms;
  uint8_t* correct;
  optional<Upstream<A>> up;  // none: no gradients
  Wanted wanted;             // of them
  Head<T, A> head{data<T>(layer.hidden), data<T>(layer.weight), data<T>(layer.bias), layer.D};
  int64_t V = layer.V, D = layer.D;
  Gradients out{layer.hidden, layer.hidden, layer.hidden};
  Tensor sum_weight = layer.hidden, sum_bias = layer.hidden;  // [V, D], [V] of dtype A

  Gradients run() {
    const Tensor& on = layer.hidden;
    const ScalarType dtype = on.scalar_type();
    const bool by_position = asked.L <= asked.N;
    const int64_t count = asked.B * std::min(asked.L, asked.N) * asked.states;
    const bool work = count * V > 0;
    const bool sparse = asked.candidates != nullptr && asked.K == 1 && asked.C < V;
    const int64_t length = std::max<int64_t>(1, std::min(count, chunk_rows(V * static_cast<int64_t>(sizeof(T)))));
    const bool at_once = work && !sparse && length >= count;  // then the products are the gradients
    if (up) {
      if (wanted.hidden) out.hidden = torch::stable::new_zeros(on, on.sizes());
      if (wanted.weight && at_once) out.weight = empty(on, dtype, V, D);
      if (wanted.weight && !at_once) sum_weight = zeros(on, dtype_of<A>(), V, D);
      if (wanted.bias) sum_bias = zeros(on, dtype_of<A>(), V);
    }
    if (work) {
      Tensor read = empty(on, ScalarType::Long, count);
      launch(&list_rows<A>, on, warps_for(on, count), asked, by_position, count, data<int64_t>(read));
      Tensor any = on;
      if (sparse) read = candidates(read, count, &any);
      const Tensor logits = empty(on, dtype, length, V), gradient = empty(on, dtype, up ? length : 0, V);
      const Tensor state = empty(on, dtype, sparse ? 0 : length, D), lse = empty(on, dtype_of<A>(), 4 * length);
      for (int64_t first = 0; first < count; first += length) {
        const int64_t m = std::min(length, count - first);
        const HorizonCall<T, A> c{asked, data<T>(logits), data<int64_t>(read) + first, m,
                                  sparse ? data<int>(any) : nullptr};
        chunk(c, sparse, at_once, logits, gradient, state, reinterpret_cast<LogSumExp<A>*>(data<A>(lse)));
      }
    }
    if (!up || !wanted.hidden) out.hidden = empty(on, dtype, 0);
    if (!up || !wanted.weight) out.weight = empty(on, dtype, 0);
    if (up && wanted.weight && !at_once) out.weight = to_dtype(sum_weight, dtype);
    out.bias = up && wanted.bias ? to_dtype(sum_bias, dtype) : empty(on, dtype, 0);
    return out;
  }

 private:
  // Works on the rows that list candidates; returns those that list none, and in *any whether there are any.
  Tensor candidates(const Tensor& read, int64_t count, Tensor* any) {
    const Tensor& on = layer.hidden;
    const int64_t n = up ? count * asked.C : 0;
    const Tensor dense = empty(on, ScalarType::Long, count), classes = empty(on, ScalarType::Int, n);
    const Tensor gradient = empty(on, dtype_of<A>(), n);
    *any = zeros(on, ScalarType::Int, 1);
    const HorizonCall<T, A> c{asked, nullptr, data<int64_t>(read), count};
    const Entries<A> entries{up ? data<int32_t>(classes) : nullptr, up ? data<A>(gradient) : nullptr};
    launch(&candidate_rows<T, A>, on, warps_for(on, count), c, head, up.value_or(Upstream<A>{}), terms, correct,
           data<int64_t>(dense), data<int>(*any), entries, wanted.hidden ? data<T>(out.hidden) : nullptr);
    if (n > 0 && (wanted.weight || wanted.bias)) {
      const auto [sorted, entry] = stable_sort(classes);
      launch(&sum_entries<T, A>, on, Shape{blocks_for(on, V, 1), kClassThreads}, head, data<const int64_t>(read), V,
             asked.C, n, data<const int32_t>(sorted), data<const int64_t>(entry), data<const A>(gradient),
             of_weight(), of_bias());
    }
    return dense;
  }

  // One chunk of rows c.read; in the tensors is room for its logits, their gradient, its states and their lse.
  void chunk(const HorizonCall<T, A>& c, bool sparse, bool at_once, const Tensor& logits_, const Tensor& gradient_,
             const Tensor& state_, LogSumExp<A>* lse) {
    const Tensor& on = layer.hidden;
    const Tensor logits = first_rows(logits_, c.count), state = sparse ? state_ : first_rows(state_, c.count);
    if (sparse) {
      launch(&dense_logits<T, A>, on, warps_for(on, c.count * V), c, head, data<T>(logits));
    } else {
      launch(&gather_states<T, A>, on, warps_for(on, c.count), head.hidden, c.read, c.count, D, data<T>(state));
      linear(state, layer.weight, layer.bias, logits);
    }
    forward(on, c, lse, terms, correct);
    if (!up) return;
    const Tensor gradient = first_rows(gradient_, c.count);
    backward(on, c, lse, *up, data<T>(gradient));
    if (sparse) {
      if (wanted.hidden) {
        launch(&dense_states<T, A>, on, warps_for(on, c.count), c, head, data<const T>(gradient), data<T>(out.hidden));
      }
      if (wanted.weight || wanted.bias) {
        launch(&dense_weights<T, A>, on, Shape{blocks_for(on, V, 1), kClassThreads}, c, head, data<const T>(gradient),
               of_weight(), of_bias());
      }
      return;
    }
    if (wanted.weight) {
      const Tensor part = at_once ? out.weight : empty(on, on.scalar_type(), V, D);
      multiply(transposed(gradient), state, part);
      if (!at_once) add(sum_weight, part);
    }
    if (wanted.hidden) {
      multiply(gradient, layer.weight, state);  // the states are not needed any more
      launch(&scatter_states<T, A>, on, warps_for(on, c.count), data<const T>(state), c.read, c.count, D,
             data<T>(out.hidden));
    }
    if (wanted.bias) add(sum_bias, column_sums(gradient, dtype_of<A>()));
  }

  A* of_weight() const { return wanted.weight ? data<A>(sum_weight) : nullptr; }
  A* of_bias() const { return wanted.bias ? data<A>(sum_bias) : nullptr; }

  void add(const Tensor& sum, const Tensor& part) const {
    const int64_t n = sum.numel();
    if (n == 0) return;
    const Shape shape{blocks_for(sum, n, kRowThreads), kRowThreads};
    if (part.scalar_type() == sum.scalar_type()) {
      launch(&accumulate<A, A>, sum, shape, data<A>(sum), data<const A>(part), n);
    } else {
      launch(&accumulate<T, A>, sum, shape, data<A>(sum), data<const T>(part), n);
    }
  }

  static Tensor first_rows(Tensor t, int64_t m) { return torch::stable::narrow(t, 0, 0, m); }
};

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Forward horizon_linear_ce(Tensor hidden, Tensor weight, optional<Tensor> bias, Tensor targets, optional<Tensor> rows,
                          optional<Tensor> valid, optional<Tensor> candidates, optional<Tensor> horizon_weights,
                          optional<Tensor> class_weight, int64_t horizons, double label_smoothing,
                          int64_t ignore_index, int64_t reduction_code, double z_loss, double softcap, bool metrics,
                          int64_t wanted) {
  const Layer layer(hidden, weight, bias);
  const Call call(layer.hidden, layer.form(horizons), targets, rows, valid, candidates, class_weight,
                  label_smoothing, ignore_index, z_loss, softcap);
  const Reduction reduction = to_reduction(reduction_code);
  check(!wanted || reduction != kNone, "the gradient of each term is not known in the forward pass");
  return dispatch(layer.hidden.scalar_type(), "hidden", [&](auto zero) -> Forward {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const optional<Tensor> by_horizon = call.by_horizon<A>(horizon_weights);
    Tensor mass = layer.hidden;
    const Asked<A> asked = call.asked<A>(mass);
    const Tensor terms = zeros(layer.hidden, dtype_of<A>(), asked.B, asked.L, asked.K);
    optional<Tensor> correct;
    if (metrics) correct = zeros(layer.hidden, ScalarType::Byte, asked.B, asked.L, asked.K);
    EachRow<T> each{layer, asked, data<A>(terms), data<uint8_t>(correct), std::nullopt, Wanted(wanted)};
    Tensor early = layer.hidden;
    if (wanted) {  // the coefficients do not depend on the terms, which are still 0
      early = std::get<1>(reduce<A>(asked, terms, std::nullopt, by_horizon, reduction));
      each.up = Upstream<A>{data<A>(early), nullptr, false};
    }
    const Gradients g = each.run();
    const auto [value, coefficients, measured] = reduce<A>(asked, terms, correct, by_horizon, reduction);
    return {value, coefficients, measured, g.hidden, g.weight, g.bias};
  });
}

std::tuple<Tensor, Tensor, Tensor> horizon_linear_ce_backward(
    Tensor grad, Tensor hidden, Tensor weight, optional<Tensor> bias, Tensor targets, optional<Tensor> rows,
    optional<Tensor> valid, optional<Tensor> candidates, optional<Tensor> class_weight, Tensor coefficients,
    double label_smoothing, int64_t ignore_index, double z_loss, double softcap, int64_t wanted) {
  check(coefficients.dim() == 2, "coefficients must have 2 dimensions");
  const Layer layer(hidden, weight, bias);
  const Tensor given = packed(grad, layer.hidden, "grad");
  const Call call(layer.hidden, layer.form(coefficients.size(1)), targets, rows, valid, candidates, class_weight,
                  label_smoothing, ignore_index, z_loss, softcap);
  return dispatch(layer.hidden.scalar_type(), "hidden", [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = decltype(zero);
    using A = Accumulate<T>;
    Tensor mass = layer.hidden;
    const Asked<A> asked = call.asked<A>(mass);
    const Tensor terms = empty(layer.hidden, dtype_of<A>(), asked.B, asked.L, asked.K);
    EachRow<T> each{layer, asked, data<A>(terms), nullptr, call.upstream<A>(given, coefficients), Wanted(wanted)};
    const Gradients g = each.run();
    return {g.hidden, g.weight, g.bias};
  });
}

}  // namespace
}  // namespace poh::cuda

POH_CUDA_LIBRARY(m) {
  m.impl("horizon_linear_ce", TORCH_BOX(&poh::cuda::horizon_linear_ce));
  m.impl("horizon_linear_ce_backward", TORCH_BOX(&poh::cuda::horizon_linear_ce_backward));
}
