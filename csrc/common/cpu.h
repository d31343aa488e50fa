// What the CPU kernels share: packed and fresh tensors, large ones in huge pages, and the threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "common/tensors.h"

namespace poh {

inline Tensor packed(const Tensor& t) {
  check(t.is_cpu(), "every tensor must be on the CPU");
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline std::optional<Tensor> packed(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(packed(*t)) : std::nullopt;
}

// Fresh memory, if large, is asked for in huge pages: the first write to it costs a page fault per 4 KiB else, which
// is most of the time of writing it (measured: 68 -> 15 ms for 207 MB).
inline Tensor in_huge_pages(Tensor out) {
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

}  // namespace poh
