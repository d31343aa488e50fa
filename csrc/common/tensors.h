// Tensors as plain pointers, and the choice of the code by dtype: the same for the CPU and for CUDA.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>
#include <type_traits>

#include "common/checks.h"

namespace poh {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// The dtype of all arithmetic on numbers stored as T.
template <class T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class A>
constexpr ScalarType dtype_of() {
  static_assert(std::is_same_v<A, float> || std::is_same_v<A, double>);
  return std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

template <class T>
T* data(const std::optional<Tensor>& t) {
  return t ? data<T>(*t) : nullptr;
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

}  // namespace poh
