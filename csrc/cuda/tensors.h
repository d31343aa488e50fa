// Tensors as plain pointers for the CUDA kernels, and the choice of the kernel by dtype.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>
#include <optional>

#include "cuda/device.h"

namespace poh::cuda {

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

template <class T>
T* data(const std::optional<Tensor>& t) {
  return t ? data<T>(*t) : nullptr;
}

// Uninitialised, on the device of `like`. (A braced list of sizes would be mangled by nvcc inside templates.)
template <class... Sizes>
Tensor empty(const Tensor& like, ScalarType dtype, Sizes... sizes) {
  const std::array<int64_t, sizeof...(Sizes)> shape{static_cast<int64_t>(sizes)...};
  return torch::stable::new_empty(like, {shape.data(), shape.size()}, dtype);
}

template <class... Sizes>
Tensor zeros(const Tensor& like, ScalarType dtype, Sizes... sizes) {
  const std::array<int64_t, sizeof...(Sizes)> shape{static_cast<int64_t>(sizes)...};
  return torch::stable::new_zeros(like, {shape.data(), shape.size()}, dtype);
}

// Contiguous, and on the device of `like`: a kernel must never get a pointer of another device.
inline Tensor packed(const Tensor& t, const Tensor& like, const char* name) {
  check(t.device() == like.device(), name, " must be on the device of the other tensors");
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline std::optional<Tensor> packed(const std::optional<Tensor>& t, const Tensor& like, const char* name) {
  return t ? std::optional<Tensor>(packed(*t, like, name)) : std::nullopt;
}

inline void check_form(const Tensor& t, const char* name, ScalarType dtype, int64_t dim) {
  check(t.scalar_type() == dtype, name, " has the wrong dtype");
  check(t.dim() == dim, name, " must have ", dim, " dimensions, got ", t.dim());
}

template <class A>
constexpr ScalarType dtype_of() {
  return std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
}

// f(T{}) for the floating type `dtype` stands for.
template <class F>
auto dispatch(ScalarType dtype, const char* name, const F& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    case ScalarType::Half:
      return f(Half{});
    default:
      check(false, name, " must be float32, float64, bfloat16 or float16");
      return f(float{});
  }
}

}  // namespace poh::cuda
