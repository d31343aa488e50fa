// What the linear loss leaves to torch: matrix products, a column sum and a sort, on the device and in the stream of
// their arguments, without waiting. Called through the dispatcher by way of the Stable ABI, so that no ATen header and
// no library of CUDA is needed, and so that the tests' emulation gets them for its tensors, which are on the CPU.
#pragma once

#include "common/cuda_tensors.h"

namespace poh::cuda {

namespace detail {

template <class... Arguments>
StableIValue call_first(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return stack[0];
}

}  // namespace detail

// out = a b
inline void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  (void)torch::stable::detail::to<Tensor>(detail::call_first("aten::mm", "out", a, b, out));
}

// out = x weight' + bias
inline void linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out) {
  (void)torch::stable::detail::to<Tensor>(detail::call_first("aten::linear", "out", x, weight, bias, out));
}

inline Tensor transposed(const Tensor& t) { return torch::stable::transpose(t, 0, 1); }

// The sums over the rows of t, accumulated in and of the given dtype.
inline Tensor column_sums(const Tensor& t, ScalarType dtype) {
  const std::array<int64_t, 1> rows{0};
  return torch::stable::sum(t, torch::headeronly::IntHeaderOnlyArrayRef(rows.data(), rows.size()), false, dtype);
}

// The values of t in ascending order and where each stood; equal ones keep their order.
inline std::tuple<Tensor, Tensor> stable_sort(const Tensor& t) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(t),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(int64_t{-1}), torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

inline Tensor to_dtype(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
}

}  // namespace poh::cuda
