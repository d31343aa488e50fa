// Threads for the CPU kernels: torch's own pool, so torch.set_num_threads() and OMP_NUM_THREADS hold.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
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

}  // namespace poh
