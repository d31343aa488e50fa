// Softmax over heads with its entropy, forward and backward, one pass each over the rows.
// A few heads: rows lie across the SIMD lanes. Many: the row does, in pieces that stay in the first cache.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "common/cpu.h"
#include "routing/cpu_rows.h"
#include "routing/ops.h"

namespace poh {
namespace {

constexpr int64_t kGrain = 16384;  // elements a thread must have to be worth starting
constexpr int64_t kBlock = 512;    // rows summed in one piece: fixed, so that sums do not depend on threads

// Rows taken at a time.
template <class A>
int64_t step_of(int64_t heads) {
  return heads <= kTileHeads ? kTileRows<A> : 1;
}

// put(row, count, entropies) for rows [begin, end), some at a time; weights may be null.
template <class T, class A, class Put>
void forward_rows(const T* logits, int64_t begin, int64_t end, int64_t heads, A inverse_temperature, T* weights,
                  const Put& put) {
  for (int64_t i = begin; i < end; i += step_of<A>(heads)) {
    const auto put_here = [&](int64_t count, const A* entropy) { put(i, count, entropy); };
    T* out = weights == nullptr ? nullptr : weights + i * heads;
    if (heads <= kTileHeads) {
      tile_forward(logits + i * heads, end - i, heads, inverse_temperature, out, put_here);
    } else {
      long_forward(logits + i * heads, heads, inverse_temperature, out, put_here);
    }
  }
}

int64_t row_grain(int64_t heads) { return std::max<int64_t>(kGrain / heads, 1); }

struct CpuRouting {
  template <class T, class A>
  static void forward(const RouteRows& in, A inverse_temperature, T* weights, T* entropy) {
    const T* const z = data<T>(in.logits);
    parallel(in.rows, row_grain(in.heads), [&](int64_t begin, int64_t end) {
      forward_rows<T, A>(z, begin, end, in.heads, inverse_temperature, weights,
                         [=](int64_t row, int64_t count, const A* value) { convert(value, entropy + row, count); });
    });
  }

  template <class T, class A>
  static void sum(const RouteRows& in, A inverse_temperature, double divisor, T* out) {
    const T* const z = data<T>(in.logits);
    const int64_t blocks = (in.rows + kBlock - 1) / kBlock;
    std::vector<double> sums(blocks, 0.0);
    parallel(blocks, std::max<int64_t>(kGrain / (in.heads * kBlock), 1), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        forward_rows<T, A>(z, b * kBlock, std::min((b + 1) * kBlock, in.rows), in.heads, inverse_temperature, nullptr,
                           [&](int64_t, int64_t count, const A* value) {
                             for (int64_t r = 0; r < count; ++r) sums[b] += value[r];
                           });
      }
    });
    double total = 0;
    for (const double one : sums) total += one;
    *out = static_cast<T>(static_cast<A>(total / divisor));
  }

  template <class T, class A>
  static void backward(const RouteRows& in, A inverse_temperature, const T* p, const T* g, const T* h, bool one,
                       double entropy_scale, T* to) {
    const T* const z = data<T>(in.logits);
    const int64_t heads = in.heads;
    parallel(in.rows, row_grain(heads), [&](int64_t begin, int64_t end) {
      const auto entropy_at = [&](int64_t row) { return static_cast<A>(static_cast<A>(h[row]) * entropy_scale); };
      A of_entropy[kTileRows<A>] = {};
      if (one) std::fill(of_entropy, of_entropy + kTileRows<A>, entropy_at(0));
      for (int64_t i = begin; i < end; i += step_of<A>(heads)) {
        const T *zi = z + i * heads, *gi = g == nullptr ? nullptr : g + i * heads;
        const int64_t count = one ? 0 : std::min(step_of<A>(heads), end - i);
        for (int64_t r = 0; r < count; ++r) of_entropy[r] = entropy_at(i + r);
        if (heads <= kTileHeads) {
          const T* pi = p == nullptr ? nullptr : p + i * heads;
          tile_backward<T, A>(zi, pi, gi, of_entropy, end - i, heads, inverse_temperature, to + i * heads);
        } else {
          long_backward<T, A>(zi, gi, of_entropy[0], heads, inverse_temperature, to + i * heads);
        }
      }
    });
  }
};

}  // namespace
}  // namespace poh

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) {
  using Ops = poh::RoutingOps<poh::CpuRouting>;
  m.impl("route", TORCH_BOX(&Ops::route));
  m.impl("route_backward", TORCH_BOX(&Ops::backward));
  m.impl("routing_entropy", TORCH_BOX(&Ops::entropy));
}
