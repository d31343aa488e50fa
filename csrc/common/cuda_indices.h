// POH_EXT_CHECKS=1: looks for indices out of range before the kernels meet them, at the price of waiting for the
// device. Without it, a kernel that meets one stops by a device assertion (POH_DEVICE_CHECK) before it reads there.
#pragma once

#include <cstdlib>
#include <optional>

#include "common/device.h"
#include "common/index_errors.h"
#include "common/tensors.h"

namespace poh::cuda {

inline bool checks_wanted() {
  static const bool wanted = [] {
    const char* const value = std::getenv("POH_EXT_CHECKS");
    return value != nullptr && std::strcmp(value, "1") == 0;
  }();
  return wanted;
}

// *last: n - i for the first i with t[i] neither `except` nor in [low, high), if there is one.
template <class Index>
__global__ void __launch_bounds__(256)
    find_outside(const Index* t, int64_t n, Index low, Index high, Index except, unsigned long long* last) {
  const int64_t step = gridDim.x * static_cast<int64_t>(blockDim.x);
  unsigned long long mine = 0;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n && mine == 0; i += step) {
    if ((t[i] < low || t[i] >= high) && t[i] != except) mine = static_cast<unsigned long long>(n - i);
  }
  if (mine != 0) atomicMax(last, mine);
}

// The first element of t (contiguous int64) that is neither `except` nor in [low, high). Waits for the device.
inline std::optional<Outside> first_outside(const Tensor& t, int64_t low, int64_t high, int64_t except) {
  const int64_t n = t.numel();
  if (n == 0) return std::nullopt;
  const Tensor last = zeros(t, ScalarType::Long, 1);
  launch(&find_outside<int64_t>, t, Shape{blocks_for(t, n, 256), 256}, data<const int64_t>(t), n, low, high, except,
         data<unsigned long long>(last));
  Outside found{0, 0};
  read_back(last, data<int64_t>(last), &found.at);
  if (found.at == 0) return std::nullopt;
  found.at = n - found.at;
  read_back(t, data<int64_t>(t) + found.at, &found.value);
  return found;
}

}  // namespace poh::cuda
