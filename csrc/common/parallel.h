// Threads for the CPU kernels: torch's own pool, so torch.set_num_threads() and OMP_NUM_THREADS hold.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace poh {

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
