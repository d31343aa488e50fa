// Tensors as plain pointers, fresh and packed ones, and the choice of the code by dtype: the same for CPU and CUDA.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "common/checks.h"

namespace poh {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using std::optional;

// How terms make up a value; the codes are those of REDUCTIONS in poh_ext/ops/horizon_ce.py.
enum Reduction : int64_t { kMean, kSum, kNone, kPositionMean };

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
T* data(const optional<Tensor>& t) {
  return t ? data<T>(*t) : nullptr;
}

// Uninitialised and contiguous. torch::stable::new_empty does the same, but looks the operator up by its name each
// time: 2 us, where a small operator costs 10.
inline Tensor new_empty(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype,
                        int32_t device_type = aoti_torch_device_type_cpu(), int32_t device_index = 0) {
  std::array<int64_t, 64> strides;  // torch makes no tensor of more dimensions
  const int64_t dims = static_cast<int64_t>(sizes.size());
  for (int64_t d = dims - 1, stride = 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  const int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dims, sizes.data(), strides.data(), code, device_type, device_index, &made));
  return Tensor(made);
}

// On the device of `like`.
inline Tensor empty_of(const Tensor& like, ScalarType dtype, torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const int32_t index = device_type == aoti_torch_device_type_cpu() ? 0 : like.get_device_index();
  return new_empty(sizes, dtype, device_type, index);
}

// The same with the sizes one by one. (A braced list of them would be mangled by nvcc inside templates.)
template <class... Sizes>
Tensor empty(const Tensor& like, ScalarType dtype, Sizes... sizes) {
  const std::array<int64_t, sizeof...(Sizes)> shape{static_cast<int64_t>(sizes)...};
  return empty_of(like, dtype, {shape.data(), shape.size()});
}

template <class... Sizes>
Tensor zeros(const Tensor& like, ScalarType dtype, Sizes... sizes) {
  if (!like.is_cpu()) {
    const std::array<int64_t, sizeof...(Sizes)> shape{static_cast<int64_t>(sizes)...};
    return torch::stable::new_zeros(like, {shape.data(), shape.size()}, dtype);
  }
  Tensor out = empty(like, dtype, sizes...);
  if (out.numel() > 0) std::memset(out.data_ptr(), 0, out.numel() * out.element_size());
  return out;
}

// Fresh memory, if large, is asked for in huge pages: the first write to it costs a page fault per 4 KiB else, which
// is most of the time of writing it (measured: 68 -> 15 ms for 207 MB).
inline Tensor in_huge_pages(Tensor out) {
  if (!out.is_cpu()) return out;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t{1} << 21;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(out.data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(out.numel()) * out.element_size();
  const uintptr_t first = (begin + page - 1) & ~(page - 1), last = end & ~(page - 1);
  // A hint: what it returns does not matter.
  if (last > first && last - first >= 4 * page) {
    (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return out;
}

// Contiguous, and on the device of `like`: no loop and no kernel may get a pointer of another device.
inline Tensor packed(const Tensor& t, const Tensor& like, const char* name) {
  check(t.device() == like.device(), name, " must be on the device of the other tensors");
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline optional<Tensor> packed(const optional<Tensor>& t, const Tensor& like, const char* name) {
  return t ? optional<Tensor>(packed(*t, like, name)) : std::nullopt;
}

inline Tensor to_dtype(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
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
