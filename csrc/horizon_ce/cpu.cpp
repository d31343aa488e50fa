// Multi-horizon cross-entropy of dense logits on the CPU: threads over rows, one log-sum-exp per row read. (Where a
// mask leaves few classes, cpu_few_allowed.h takes over.)
#include <torch/csrc/stable/library.h>

#include "common/cpu.h"
#include "horizon_ce/cpu_few_allowed.h"
#include "horizon_ce/cpu_row_loss.h"
#include "horizon_ce/cpu_terms.h"
#include "horizon_ce/ops.h"

namespace poh {
namespace {

struct CpuDense : CpuLoss {
  template <class T, class A = Accumulate<T>>
  static void forward(const LossCall<A>& c, const Tensor& logits, LogSumExp<A>* lse, A* terms, uint8_t* correct) {
    const T* const z = data<T>(logits);
    if constexpr (std::is_same_v<T, A>) {
      const FewAllowed<A> few(c, lse + c.B * c.N);
      if (FewAllowed<A>::suits(c) && correct == nullptr && few.forward(z, terms)) return;
    }
    const Readers readers(c);
    const RowLoss<T> loss{c, readers, lse, lse + c.B * c.N, correct};
    parallel_blocks(
        readers.read.size(), rows_per_block(c.V), [] { return RowScratch<A>(); },
        [&](int64_t begin, int64_t end, RowScratch<A>& scratch) {
          for (int64_t j = begin; j < end; ++j) {
            const int64_t q = readers.read[j];
            loss.forward(q, z + q * c.V, terms + q / c.N * c.L * c.K, scratch);
          }
        });
  }

  template <class T, class A = Accumulate<T>>
  static Tensor backward(const LossCall<A>& c, const Tensor& logits, LogSumExp<A>* lse, const Upstream<A>& upstream) {
    const Tensor out = new_large(logits);
    const T* const z = data<T>(logits);
    T* const g = data<T>(out);
    if constexpr (std::is_same_v<T, A>) {
      const FewAllowed<A> few(c, lse + c.B * c.N);
      if (FewAllowed<A>::suits(c) && few.backward(z, upstream, g)) return out;
    }
    const Readers readers(c);
    const RowLoss<T> loss{c, readers, lse, lse + c.B * c.N, nullptr};
    parallel_blocks(
        c.B * c.N, rows_per_block(c.V), [] { return RowScratch<A>(); },
        [&](int64_t begin, int64_t end, RowScratch<A>& scratch) {
          for (int64_t q = begin; q < end; ++q) {
            if (readers.start[q] == readers.start[q + 1]) {
              std::memset(static_cast<void*>(g + q * c.V), 0, c.V * sizeof(T));
            } else {
              loss.backward(q, z + q * c.V, g + q * c.V, upstream, scratch);
            }
          }
        });
    return out;
  }
};

}  // namespace
}  // namespace poh

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) {
  m.impl("horizon_ce", TORCH_BOX(&poh::DenseLoss<poh::CpuDense>::forward));
  m.impl("horizon_ce_backward", TORCH_BOX(&poh::DenseLoss<poh::CpuDense>::backward));
}
