// What the CPU kernels share: packed and large tensors, the threads, and a look for indices out of range.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>

#include "common/tensors.h"

namespace poh {

inline Tensor packed(const Tensor& t) {
  check(t.is_cpu(), "every tensor must be on the CPU");
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline std::optional<Tensor> packed(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(packed(*t)) : std::nullopt;
}

// Uninitialised and contiguous, of the shape and dtype of `like`.
inline Tensor new_large(const Tensor& like) { return in_huge_pages(new_empty(like.sizes(), like.scalar_type())); }

// Calls f(begin, end) over [0, n), at least `grain` items a thread. f must not throw (see checks.h).
// The split depends on the thread count: never let a result depend on it (no sums across items in f).
template <class F>
void parallel(int64_t n, int64_t grain, const F& f) {
  if (n <= 0) return;
  if (n <= grain) {
    f(int64_t{0}, n);
  } else {
    torch::stable::parallel_for(0, n, std::max<int64_t>(grain, 1), f);
  }
}

// Calls f(begin, end, own) over blocks of [0, n) that the threads take in turn: for items of uneven cost.
// own is what make() returned for the thread (scratch memory). Neither may throw.
template <class Make, class F>
void parallel_blocks(int64_t n, int64_t block, const Make& make, const F& f) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    auto own = make();
    for (int64_t i; (i = next.fetch_add(block, std::memory_order_relaxed)) < n;) f(i, std::min(i + block, n), own);
  };
  const int64_t blocks = (n + block - 1) / block;
  parallel(std::min<int64_t>(blocks, torch::stable::get_num_threads()), 1, work);
}

// Whether indices are in range, asked by the ops of both devices.
struct Cpu {
  static bool checks_indices() { return true; }

  // The first element of t (contiguous int64) that is neither `except` nor in [low, high).
  static optional<Outside> first_outside(const Tensor& tensor, int64_t low, int64_t high, int64_t except) {
    const int64_t n = tensor.numel();
    const int64_t* const t = data<int64_t>(tensor);
    const uint64_t range = static_cast<uint64_t>(high - low);
    for (int64_t begin = 0; begin < n; begin += 1024) {
      const int64_t end = std::min<int64_t>(begin + 1024, n);
      uint64_t bad = 0;
#pragma omp simd reduction(| : bad)
      for (int64_t i = begin; i < end; ++i) {
        bad |= static_cast<uint64_t>((static_cast<uint64_t>(t[i] - low) >= range) & (t[i] != except));
      }
      if (bad == 0) continue;
      for (int64_t i = begin; i < end; ++i) {
        if ((t[i] < low || t[i] >= high) && t[i] != except) return Outside{i, t[i]};
      }
    }
    return std::nullopt;
  }
};

}  // namespace poh
