// The ops of the multi-horizon cross-entropy for both devices: arguments are checked and results made here, once.
//
// The linear form takes hidden states; logits of some rows exist at a time and never of all of them. The rows that are
// read are taken in chunks: gathered, multiplied through torch, turned into terms and gradient by what the dense form
// has for rows, and multiplied again. With one horizon and candidates, only the logits of candidates are formed.
#pragma once

#include <array>
#include <tuple>

#include "horizon_ce/arguments.h"

namespace poh {

inline Reduction to_reduction(int64_t code) {
  check(code >= kMean && code <= kPositionMean, "reduction must be a code from 0 to 3, got ", code);
  return static_cast<Reduction>(code);
}

// Device: Cpu or Cuda, with
//   forward(call, logits, lse, terms, correct): writes the term of every (i, k) to terms [B, L, K], and to lse
//     [2, B * N] what the gradient needs of each row: that of all horizons, and that of horizon 1 under a mask. correct
//     [B, L, K], if not null: whether the target has the largest logit (the first of equals).
//   backward(call, logits, lse, upstream): the gradient [B, N, V].
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

// What is left to torch: matrix products and a column sum, on the device and in the stream of their arguments. Called
// through the dispatcher by way of the Stable ABI, so that no ATen header and no library of CUDA is needed, and so that
// the tests' emulation gets them for its tensors, which are on the CPU.
namespace products {

template <class... Arguments>
void call(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);  // `out` again
}

// out = a b
inline void multiply(const Tensor& a, const Tensor& b, const Tensor& out) { call("aten::mm", "out", a, b, out); }

// out = x weight' + bias
inline void linear(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& out) {
  call("aten::linear", "out", x, weight, bias, out);
}

// The sums over the rows of t, accumulated in and of the given dtype.
inline Tensor column_sums(const Tensor& t, ScalarType dtype) {
  const std::array<int64_t, 1> rows{0};
  return torch::stable::sum(t, torch::headeronly::IntHeaderOnlyArrayRef(rows.data(), rows.size()), false, dtype);
}

inline Tensor some_rows(Tensor t, int64_t first, int64_t count) { return torch::stable::narrow(t, 0, first, count); }

}  // namespace products

// hidden [B, N, D] or [B, N, K, D], weight [V, D], bias [V]: contiguous, of one dtype and device.
struct LinearLayer {
  Tensor hidden, weight;
  optional<Tensor> bias;
  int64_t V, D, states;

  LinearLayer(const Tensor& hidden_, const Tensor& weight_, const optional<Tensor>& bias_)
      : hidden(packed(hidden_, hidden_, "hidden")),
        weight(packed(weight_, hidden_, "weight")),
        bias(packed(bias_, hidden_, "bias")) {
    check(hidden.dim() == 3 || hidden.dim() == 4, "hidden must have 3 or 4 dimensions, got ", hidden.dim());
    check_form(weight, "weight", hidden.scalar_type(), 2);
    V = weight.size(0), D = weight.size(1), states = hidden.dim() == 4 ? hidden.size(2) : 1;
    check(hidden.size(hidden.dim() - 1) == D, "hidden must have states of ", D, " elements");
    if (bias) {
      check_form(*bias, "bias", hidden.scalar_type(), 1);
      check(bias->size(0) == V, "bias must have ", V, " classes");
    }
  }
};

// Of hidden, weight and bias, as csrc/ops.cpp numbers them.
struct Wanted {
  bool hidden, weight, bias;

  explicit Wanted(int64_t bits) : hidden(bits & 1), weight(bits & 2), bias(bits & 4) {}
};

// The terms of a call, and the gradients that are wanted of it: a frozen head costs neither their time nor memory.
//
// Device: with large(like, dtype, sizes, whether it is zeros), and Rows<T>, which is made for a call and has
//   list(): the rows to take, int64 numbers (b * N + row) * states + state; -1 stands for none.
//   candidates(read, gradients): does what is to be done for those that list candidates; returns the others.
//   gather(read, m, state) and scatter(state, read, m, out): states of m rows out of hidden [., D] and into the like.
//   chunk(logits, gradient, read, m): the terms of m rows, and the gradient to their logits where there is an upstream.
//   add(sum, part, n): sum += part.
template <class Device, class T>
class LinearTerms {
  using A = Accumulate<T>;

 public:
  const LinearLayer& layer;
  const LossCall<A>& call;
  A* terms;
  uint8_t* correct;
  optional<Upstream<A>> up;  // none: no gradients
  Wanted wanted;             // of them

  // Gradients of hidden, weight and bias; empty if not wanted.
  std::tuple<Tensor, Tensor, Tensor> run() {
    const Tensor& on = layer.hidden;
    const int64_t V = layer.V, D = layer.D;
    const ScalarType dtype = on.scalar_type();
    if (!up) wanted = Wanted(0);
    typename Device::template Rows<T> rows(layer, call, terms, correct, up);
    Tensor read = rows.list();
    const bool sparse = call.candidates != nullptr && call.K == 1 && call.C < V;
    const int64_t most = Device::chunk_rows(V * static_cast<int64_t>(sizeof(T)));
    // If there is no more than one product, or if it has the dtype of the sum, the first is written where the sum is
    // to stand.
    const bool one = read.numel() <= most;
    const bool direct = !sparse && read.numel() * V > 0 && (one || std::is_same_v<T, A>);
    optional<Tensor> grad_hidden, sum_weight, sum_bias;
    if (wanted.hidden) grad_hidden = Device::large(on, dtype, on.sizes(), true);
    if (wanted.weight) {
      sum_weight = Device::large(on, direct ? dtype : dtype_of<A>(), layer.weight.sizes(), !direct);
    }
    if (wanted.bias) sum_bias = zeros(on, dtype_of<A>(), V);
    if (sparse && read.numel() > 0) {
      read = rows.candidates(read, data<T>(grad_hidden), data<A>(sum_weight), data<A>(sum_bias));
    }
    const int64_t count = V > 0 ? read.numel() : 0, length = std::min(count, most);
    const int64_t panel = wanted.weight ? Device::panel_rows(V, D * static_cast<int64_t>(sizeof(T))) : 0;
    const Tensor logits_room = empty(on, dtype, length, V), state_room = empty(on, dtype, length, D);
    const Tensor gradient_room = Device::kInPlace ? logits_room : empty(on, dtype, up ? length : 0, V);
    for (int64_t first = 0; first < count; first += length) {
      const int64_t m = std::min(length, count - first);
      const int64_t* const which = data<int64_t>(read) + first;
      const Tensor logits = products::some_rows(logits_room, 0, m), state = products::some_rows(state_room, 0, m);
      rows.gather(which, m, data<T>(state));
      products::linear(state, layer.weight, layer.bias, logits);
      const Tensor gradient = up ? products::some_rows(gradient_room, 0, m) : logits;
      rows.chunk(data<T>(logits), data<T>(gradient), which, m);
      const Tensor turned = torch::stable::transpose(gradient, 0, 1);
      if (wanted.weight && direct && first == 0) {
        products::multiply(turned, state, *sum_weight);
      } else if (wanted.weight) {
        const Tensor part = empty(on, dtype, panel, D);
        for (int64_t v = 0; v < V; v += panel) {
          const int64_t n = std::min(panel, V - v);
          const Tensor product = products::some_rows(part, 0, n);
          products::multiply(products::some_rows(turned, v, n), state, product);
          rows.add(data<A>(*sum_weight) + v * D, data<T>(product), n * D);
        }
      }
      if (wanted.hidden) {
        products::multiply(gradient, layer.weight, state);  // the states are not needed any more
        rows.scatter(data<T>(state), which, m, data<T>(*grad_hidden));
      }
      if (wanted.bias) rows.add(data<A>(*sum_bias), data<A>(products::column_sums(gradient, dtype_of<A>())), V);
    }
    const auto result = [&](const optional<Tensor>& t) {
      return t ? to_dtype(*t, dtype) : empty(on, dtype, 0);
    };
    return {result(grad_hidden), result(sum_weight), result(sum_bias)};
  }
};

// The ops horizon_linear_ce and its backward. Device: as in LinearTerms.
template <class Device>
struct LinearLoss {
  using Gradients = std::tuple<Tensor, Tensor, Tensor>;  // of hidden, weight and bias
  using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;  // loss, coefficients, metrics, gradients

  static Forward forward(Tensor hidden, Tensor weight, optional<Tensor> bias, Tensor targets, optional<Tensor> rows,
                         optional<Tensor> valid, optional<Tensor> candidates, optional<Tensor> horizon_weights,
                         optional<Tensor> class_weight, int64_t horizons, double label_smoothing, int64_t ignore_index,
                         int64_t reduction_code, double z_loss, double softcap, bool metrics, int64_t wanted) {
    const LinearLayer layer(hidden, weight, bias);
    LossArguments a{.input = layer.hidden, .targets = targets, .rows = rows, .valid = valid,
                    .candidates = candidates, .class_weight = class_weight, .horizon_weights = horizon_weights,
                    .K = horizons, .smoothing = label_smoothing, .ignore = ignore_index, .z_loss = z_loss,
                    .softcap = softcap, .V = layer.V, .states = layer.states};
    a.check_all<Device>();
    const Reduction reduction = to_reduction(reduction_code);
    check(!wanted || reduction != kNone, "the gradient of each term is not known in the forward pass");
    return dispatch(hidden.scalar_type(), "hidden", [&](auto zero) -> Forward {
      using T = decltype(zero);
      using A = Accumulate<T>;
      optional<Tensor> mass, correct;
      const LossCall<A> call = a.template call<Device, A>(mass);
      const Tensor terms = zeros(a.input, dtype_of<A>(), a.B, a.L, a.K);
      const auto reduce = [&] {
        return Device::template reduce<A>(call, a.horizon_weights, reduction, terms, correct);
      };
      LinearTerms<Device, T> each{layer, call, data<A>(terms), nullptr, std::nullopt, Wanted(wanted)};
      optional<Tensor> early;
      if (wanted) {  // the coefficients do not depend on the terms, which are still 0
        early = std::get<1>(reduce());
        each.up = Upstream<A>{data<A>(early), nullptr, false, a.L, a.K};
      }
      if (metrics) correct = zeros(a.input, ScalarType::Byte, a.B, a.L, a.K);
      each.correct = data<uint8_t>(correct);
      const auto [of_hidden, of_weight, of_bias] = each.run();
      const auto [value, coefficients, measured] = reduce();
      return {value, coefficients, measured, of_hidden, of_weight, of_bias};
    });
  }

  static Gradients backward(Tensor grad, Tensor hidden, Tensor weight, optional<Tensor> bias, Tensor targets,
                            optional<Tensor> rows, optional<Tensor> valid, optional<Tensor> candidates,
                            optional<Tensor> class_weight, Tensor coefficients, double label_smoothing,
                            int64_t ignore_index, double z_loss, double softcap, int64_t wanted) {
    check(coefficients.dim() == 2, "coefficients must have 2 dimensions");
    const LinearLayer layer(hidden, weight, bias);
    LossArguments a{.input = layer.hidden, .targets = targets, .rows = rows, .valid = valid,
                    .candidates = candidates, .class_weight = class_weight, .K = coefficients.size(1),
                    .smoothing = label_smoothing, .ignore = ignore_index, .z_loss = z_loss, .softcap = softcap,
                    .V = layer.V, .states = layer.states};
    a.check_all<Device>();
    const Tensor given = packed(grad, hidden, "grad");
    return dispatch(hidden.scalar_type(), "hidden", [&](auto zero) -> Gradients {
      using T = decltype(zero);
      using A = Accumulate<T>;
      optional<Tensor> mass;
      const LossCall<A> call = a.template call<Device, A>(mass);
      const Tensor terms = empty(a.input, dtype_of<A>(), a.B, a.L, a.K);
      return LinearTerms<Device, T>{layer, call, data<A>(terms), nullptr, a.template upstream<A>(given, coefficients),
                                    Wanted(wanted)}
          .run();
    });
  }
};

}  // namespace poh
