// The one place where a CUDA build and the host emulation of the tests (tests/cuda) differ: shared memory,
// launches, streams, reading back, device assertions and how much is done at once. Everything else in csrc/cuda is
// compiled unchanged by both.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <optional>

#include "common/host_device.h"
#include "common/tensors.h"

#if defined(POH_CUDA_EMULATION)

#include "cuda_emulation.h"
#define POH_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m)
#define POH_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::emulation::dynamic_shared())
#define POH_SHARED(T, name, count)  \
  static const char name##_key = 0; \
  T* const name = static_cast<T*>(::emulation::static_shared(&name##_key, sizeof(T) * (count)))
#define POH_DEVICE_CHECK(ok, what) \
  do {                             \
    if (!(ok)) ::emulation::fail(what); \
  } while (false)

#else

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#define POH_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(poh_ext, CUDA, m)
#define POH_DYNAMIC_SHARED(T, name)                              \
  extern __shared__ __align__(16) unsigned char poh_dynamic_[]; \
  T* const name = reinterpret_cast<T*>(poh_dynamic_)
#define POH_SHARED(T, name, count)                                  \
  __shared__ __align__(16) unsigned char name##_bytes[sizeof(T) * (count)]; \
  T* const name = reinterpret_cast<T*>(name##_bytes)
// What assert() does, in release builds too: the kernel stops, and the next CUDA call of the process reports it.
#define POH_DEVICE_CHECK(ok, what) \
  do {                             \
    if (!(ok)) __assert_fail(what, __FILE__, __LINE__, __func__); \
  } while (false)

#endif

namespace poh::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Threads per block are a multiple of 32; shared: bytes of dynamic shared memory.
struct Shape {
  int64_t blocks;
  int threads;
  size_t shared = 0;
};

#if defined(POH_CUDA_EMULATION)

inline int multiprocessors(const Tensor&) { return ::emulation::kMultiprocessors; }
constexpr int64_t kChunkBytes = ::emulation::kChunkBytes, kChunkRows = ::emulation::kChunkRows;

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Tensor&, Shape shape, Arguments... arguments) {
  ::emulation::run(shape.blocks, shape.threads, shape.shared, [&] { kernel(arguments...); });
}

inline void read_back(const Tensor&, const int64_t* from, int64_t* to) { *to = *from; }

#else

// Rows whose logits exist at once in the linear loss: these bytes of them, but enough rows for fast matrix products.
constexpr int64_t kChunkBytes = int64_t{64} << 20, kChunkRows = 1024;

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(message("CUDA: ", cudaGetErrorString(error)));
}

// This module's own CUDA runtime (it is linked statically) has a current device of its own.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t) {
    check_cuda(cudaGetDevice(&before_));
    if (t.get_device_index() != before_) check_cuda(cudaSetDevice(t.get_device_index()));
  }
  ~OnDevice() { (void)cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

inline int multiprocessors(const Tensor& t) {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, t.get_device_index()));
  return count;
}

inline cudaStream_t current_stream(const Tensor& on) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Starts the kernel on the device of `on`, in torch's current stream there. Does not wait for it.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Tensor& on, Shape shape, Arguments... arguments) {
  const OnDevice device(on);
  if (shape.shared > 48 * 1024) {
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared)));
  }
  kernel<<<static_cast<unsigned>(shape.blocks), shape.threads, shape.shared, current_stream(on)>>>(arguments...);
  check_cuda(cudaGetLastError());
}

// Copies a number to the host, which waits for all that was started before on torch's stream: not for every call.
inline void read_back(const Tensor& on, const int64_t* from, int64_t* to) {
  const OnDevice device(on);
  const cudaStream_t stream = current_stream(on);
  check_cuda(cudaMemcpyAsync(to, from, sizeof(*to), cudaMemcpyDeviceToHost, stream));
  check_cuda(cudaStreamSynchronize(stream));
}

#endif

// Blocks for `items` at `per_block` each: what fills the device a few times over, the rest by striding.
inline int64_t blocks_for(const Tensor& on, int64_t items, int64_t per_block, int64_t blocks_per_multiprocessor = 16) {
  const int64_t needed = (items + per_block - 1) / per_block;
  return std::max<int64_t>(1, std::min(needed, multiprocessors(on) * blocks_per_multiprocessor));
}

inline int64_t chunk_rows(int64_t bytes_per_row) {
  return std::max(kChunkRows, kChunkBytes / std::max<int64_t>(bytes_per_row, 1));
}

// POH_EXT_CHECKS=1: looks for indices out of range before the kernels meet them, at the price of waiting for the
// device. Without it, a kernel that meets one stops by a device assertion (POH_DEVICE_CHECK) before it reads there.
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

// Whether indices are in range, asked by the ops of both devices.
struct Cuda {
  static bool checks_indices() { return checks_wanted(); }

  // The first element of t (contiguous int64) that is neither `except` nor in [low, high). Waits for the device.
  static std::optional<Outside> first_outside(const Tensor& t, int64_t low, int64_t high, int64_t except) {
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
};

}  // namespace poh::cuda
