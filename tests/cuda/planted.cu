// Kernels with planted faults, each beside its correct form: what the emulation and the sanitizers must tell apart.
// Every op runs one kernel on x, int64 [blocks * 64], in blocks of 64 threads.
#include "common/device.h"
#include "common/tensors.h"

namespace poh::cuda {
namespace {

constexpr int kThreads = 64;

// Each thread takes what its neighbour wrote to shared memory.
template <bool Barrier>
__global__ void rotate_block(int64_t* x) {
  POH_SHARED(int64_t, shared, kThreads);
  shared[threadIdx.x] = x[blockIdx.x * kThreads + threadIdx.x];
  if (Barrier) __syncthreads();
  x[blockIdx.x * kThreads + threadIdx.x] = shared[(threadIdx.x + 1) % kThreads];
}

// The same within warps: a shuffle is no barrier for memory.
template <bool Barrier>
__global__ void rotate_warp(int64_t* x) {
  POH_DYNAMIC_SHARED(int64_t, shared);
  const int lane = threadIdx.x % kWarp, first = threadIdx.x - lane;
  shared[threadIdx.x] = x[blockIdx.x * kThreads + threadIdx.x];
  if (Barrier) {
    __syncwarp();
  } else {
    (void)__shfl_xor_sync(kAllLanes, lane, 1);
  }
  x[blockIdx.x * kThreads + threadIdx.x] = shared[first + (lane + 1) % kWarp];
}

// All blocks count in x[0].
template <bool Atomic>
__global__ void count_blocks(int64_t* x) {
  if (threadIdx.x != 0) return;
  if (Atomic) {
    atomicAdd(reinterpret_cast<unsigned long long*>(x), 1ull);
  } else {
    x[0] += 1;
  }
}

template <bool Inside>
__global__ void past_the_end(int64_t* x, int64_t n) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i < (Inside ? n : n + 1)) x[i] += 1;
}

template <bool Inside>
__global__ void past_shared(int64_t* x) {
  POH_DYNAMIC_SHARED(int64_t, shared);
  shared[threadIdx.x] = x[blockIdx.x * kThreads + threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) x[blockIdx.x * kThreads] = shared[Inside ? kThreads - 1 : kThreads];
}

template <bool All>
__global__ void half_a_barrier(int64_t* x) {
  if (All || threadIdx.x < kThreads / 2) __syncthreads();
  x[blockIdx.x * kThreads + threadIdx.x] += 1;
}

template <bool InMask>
__global__ void outside_the_mask(int64_t* x) {
  int64_t* at = x + blockIdx.x * kThreads + threadIdx.x;
  if (threadIdx.x % kWarp < 16) *at = __shfl_sync(0xffffu, *at, InMask ? 3 : 20);
}

template <bool Ok>
__global__ void assertion(int64_t* x) {
  POH_DEVICE_CHECK(Ok || x[0] < 0, "x[0] must be negative");
}

void run(Tensor x, std::string which, bool correct) {
  int64_t* p = data<int64_t>(x);
  const Shape shape{x.numel() / kThreads, kThreads, kThreads * sizeof(int64_t)};
  if (which == "rotate_block") launch(correct ? &rotate_block<true> : &rotate_block<false>, x, shape, p);
  if (which == "rotate_warp") launch(correct ? &rotate_warp<true> : &rotate_warp<false>, x, shape, p);
  if (which == "count_blocks") launch(correct ? &count_blocks<true> : &count_blocks<false>, x, shape, p);
  if (which == "past_the_end") {
    const Shape more{shape.blocks + 1, kThreads};
    launch(correct ? &past_the_end<true> : &past_the_end<false>, x, more, p, x.numel());
  }
  if (which == "past_shared") launch(correct ? &past_shared<true> : &past_shared<false>, x, shape, p);
  if (which == "half_a_barrier") launch(correct ? &half_a_barrier<true> : &half_a_barrier<false>, x, shape, p);
  if (which == "outside_the_mask") launch(correct ? &outside_the_mask<true> : &outside_the_mask<false>, x, shape, p);
  if (which == "assertion") launch(correct ? &assertion<true> : &assertion<false>, x, shape, p);
}

}  // namespace
}  // namespace poh::cuda

STABLE_TORCH_LIBRARY(poh_planted, m) { m.def("run(Tensor(a!) x, str which, bool correct) -> ()"); }
STABLE_TORCH_LIBRARY_IMPL(poh_planted, CPU, m) { m.impl("run", TORCH_BOX(&poh::cuda::run)); }
