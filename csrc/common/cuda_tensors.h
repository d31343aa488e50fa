// Tensors for the CUDA kernels: packed, and fresh ones on the device of another.
#pragma once

#include <array>

#include "common/device.h"
#include "common/tensors.h"

namespace poh::cuda {

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

// Contiguous, and on the device of `like`: no kernel may get a pointer of another device.
inline Tensor packed(const Tensor& t, const Tensor& like, const char* name) {
  check(t.device() == like.device(), name, " must be on the device of the other tensors");
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline std::optional<Tensor> packed(const std::optional<Tensor>& t, const Tensor& like, const char* name) {
  return t ? std::optional<Tensor>(packed(*t, like, name)) : std::nullopt;
}

}  // namespace poh::cuda
