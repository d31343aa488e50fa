// CUDA on the host, for tests: compiles csrc/*/*.cu unchanged with a C++ compiler and runs the kernels.
//
// Every CUDA thread is a fiber with a stack of its own; all of them run on one OS thread, which makes a barrier a few
// hundred instructions and every run reproducible. ThreadSanitizer and AddressSanitizer know fibers: a switch between
// two fibers orders nothing, so two CUDA threads that touch the same memory without a barrier (__syncthreads,
// __syncwarp) between them are reported as the race they are, though they never run at the same time. A shuffle or a
// ballot exchanges values but, as in CUDA, orders no memory. Blocks are never ordered among each other: neighbouring
// blocks run on separate sets of fibers. Shared memory is fresh for each block and filled with garbage.
//
// Found here: races, out-of-bounds and uninitialised shared memory, barriers not all threads reach (named, not hung),
// shuffles from lanes outside the mask, device assertions. Not modelled: time, registers, weak memory order, limits
// of a device other than threads per block.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace emulation {

// Implemented in cuda_emulation.cpp, which is compiled without sanitizers: its own state is no subject of the test.
uint3 thread_index();
uint3 block_index();
uint3 block_size();
uint3 grid_size();
void sync_threads();
void sync_warp(unsigned mask);
uint64_t shuffle(unsigned mask, uint64_t value, int source_lane);
unsigned ballot(unsigned mask, bool predicate);
void* dynamic_shared();
void* static_shared(const void* key, size_t bytes);
[[noreturn]] void fail(const char* message);

constexpr int kMultiprocessors = 2;  // few, so that grids stride
constexpr long kChunkBytes = 1024, kChunkRows = 8;  // few, so that there are several chunks

// Runs body(context) once per CUDA thread; raises std::out_of_range for a failed device assertion and
// std::logic_error for a misuse of barriers or lanes.
void run(int64_t blocks, int threads, size_t shared_bytes, void (*body)(const void*), const void* context);

template <class F>
void run(int64_t blocks, int threads, size_t shared_bytes, const F& f) {
  run(blocks, threads, shared_bytes, [](const void* self) { (*static_cast<const F*>(self))(); }, &f);
}

inline int lane() {
  const uint3 t = thread_index();
  return static_cast<int>(t.x % 32);
}

template <class T>
T shuffle_from(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulation

#define threadIdx (::emulation::thread_index())
#define blockIdx (::emulation::block_index())
#define blockDim (::emulation::block_size())
#define gridDim (::emulation::grid_size())

inline void __syncthreads() { ::emulation::sync_threads(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { ::emulation::sync_warp(mask); }
inline unsigned __ballot_sync(unsigned mask, int predicate) { return ::emulation::ballot(mask, predicate != 0); }
inline int __any_sync(unsigned mask, int predicate) { return ::emulation::ballot(mask, predicate != 0) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return ::emulation::ballot(mask, predicate != 0) == mask; }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = ::emulation::lane();
  return ::emulation::shuffle_from(mask, value, (lane & -width) | (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = ::emulation::lane(), source = lane ^ bits;
  return ::emulation::shuffle_from(mask, value, source < (lane & -width) + width ? source : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = ::emulation::lane(), source = lane + static_cast<int>(delta);
  return ::emulation::shuffle_from(mask, value, source < (lane & -width) + width ? source : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = ::emulation::lane(), source = lane - static_cast<int>(delta);
  return ::emulation::shuffle_from(mask, value, source >= (lane & -width) ? source : lane);
}

// Relaxed, as in CUDA: two atomics never race, and order nothing around them.
template <class T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>, "sums of floats in any order are not deterministic: keep atomics to integers");
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  return __atomic_fetch_or(at, value, __ATOMIC_RELAXED);
}

template <class T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
