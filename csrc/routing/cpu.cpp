// Softmax over heads with its entropy, forward and backward, one pass each over the rows.
// A few heads: rows lie across the SIMD lanes. Many: the row does, in pieces that stay in the first cache.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/cpu.h"
#include "routing/cpu_rows.h"

namespace poh {
namespace {

constexpr int64_t kGrain = 16384;  // elements a thread must have to be worth starting
constexpr int64_t kBlock = 512;    // rows summed in one piece: fixed, so that sums do not depend on threads

enum Reduction : int64_t { kMean = 0, kSum = 1, kNone = 2 };

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

int64_t head_count(const Tensor& logits) {
  check(logits.dim() >= 1 && logits.size(logits.dim() - 1) >= 1, "logits must have shape [..., H] with H >= 1");
  return logits.size(logits.dim() - 1);
}

Tensor empty_rows(const Tensor& logits) {
  const auto sizes = logits.sizes();
  return new_empty(std::vector<int64_t>(sizes.begin(), sizes.end() - 1), logits.scalar_type());
}

int64_t row_grain(int64_t heads) { return std::max<int64_t>(kGrain / heads, 1); }

std::tuple<Tensor, Tensor> route(const Tensor& logits_in, double temperature) {
  const Tensor logits = packed(logits_in);
  const int64_t heads = head_count(logits), rows = logits.numel() / heads;
  const Tensor weights = new_empty(logits.sizes(), logits.scalar_type()), entropy = empty_rows(logits);
  dispatch(logits.scalar_type(), "logits", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const T* z = data<T>(logits);
    T *w = data<T>(weights), *h = data<T>(entropy);
    parallel(rows, row_grain(heads), [&](int64_t begin, int64_t end) {
      forward_rows<T, A>(z, begin, end, heads, route_inverse_temperature<A>(temperature), w,
                         [h](int64_t row, int64_t count, const A* value) { convert(value, h + row, count); });
    });
  });
  return {weights, entropy};
}

Tensor routing_entropy(const Tensor& logits_in, double temperature, int64_t reduction) {
  check(reduction >= kMean && reduction <= kNone, "reduction must be 0 (mean), 1 (sum) or 2 (none)");
  const Tensor logits = packed(logits_in);
  const int64_t heads = head_count(logits), rows = logits.numel() / heads;
  const Tensor out = reduction == kNone ? empty_rows(logits) : new_empty({}, logits.scalar_type());
  dispatch(logits.scalar_type(), "logits", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const T* z = data<T>(logits);
    T* h = data<T>(out);
    const A t = route_inverse_temperature<A>(temperature);
    if (reduction == kNone) {
      parallel(rows, row_grain(heads), [&](int64_t begin, int64_t end) {
        forward_rows<T, A>(z, begin, end, heads, t, nullptr,
                           [h](int64_t row, int64_t count, const A* value) { convert(value, h + row, count); });
      });
      return;
    }
    const int64_t blocks = (rows + kBlock - 1) / kBlock;
    std::vector<double> sums(blocks, 0.0);
    parallel(blocks, std::max<int64_t>(kGrain / (heads * kBlock), 1), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        forward_rows<T, A>(z, b * kBlock, std::min((b + 1) * kBlock, rows), heads, t, nullptr,
                           [&](int64_t, int64_t count, const A* value) {
                             for (int64_t r = 0; r < count; ++r) sums[b] += value[r];
                           });
      }
    });
    double total = 0;
    for (const double sum : sums) total += sum;
    *h = static_cast<T>(static_cast<A>(reduction == kMean && rows > 0 ? total / rows : total));
  });
  return out;
}

// weights: what route returned, if exact enough to save their exponentials (not in half precision).
// grad_entropy: one value per row, or a single one for all rows (of a reduced entropy); times entropy_scale.
Tensor route_backward(const std::optional<Tensor>& grad_weights, const Tensor& grad_entropy, double entropy_scale,
                      const Tensor& logits_in, const std::optional<Tensor>& weights_in, double temperature) {
  const Tensor logits = packed(logits_in), gh = packed(grad_entropy);
  const std::optional<Tensor> gw = packed(grad_weights), weights = packed(weights_in);
  const int64_t heads = head_count(logits), rows = logits.numel() / heads;
  const bool shared = gh.dim() == 0 && logits.dim() > 1;
  check(shared || gh.numel() == rows, "grad_entropy must have one value, or one per row of logits");
  check(gh.scalar_type() == logits.scalar_type(), "grad_entropy must have the dtype of logits");
  if (gw) {
    check(gw->numel() == logits.numel(), "grad_weights must have the shape of logits");
    check(gw->scalar_type() == logits.scalar_type(), "grad_weights must have the dtype of logits");
  }
  if (weights) {
    check(weights->numel() == logits.numel(), "weights must have the shape of logits");
    check(weights->scalar_type() == logits.scalar_type(), "weights must have the dtype of logits");
  }
  const Tensor out = new_empty(logits.sizes(), logits.scalar_type());
  dispatch(logits.scalar_type(), "logits", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const T *z = data<T>(logits), *p = data<T>(weights), *g = data<T>(gw), *h = data<T>(gh);
    T* to = data<T>(out);
    const A t = route_inverse_temperature<A>(temperature);
    parallel(rows, row_grain(heads), [&](int64_t begin, int64_t end) {
      const auto entropy_at = [&](int64_t row) { return static_cast<A>(static_cast<A>(h[row]) * entropy_scale); };
      A of_entropy[kTileRows<A>] = {};
      if (shared) std::fill(of_entropy, of_entropy + kTileRows<A>, entropy_at(0));
      for (int64_t i = begin; i < end; i += step_of<A>(heads)) {
        const T *zi = z + i * heads, *gi = g == nullptr ? nullptr : g + i * heads;
        const int64_t count = shared ? 0 : std::min(step_of<A>(heads), end - i);
        for (int64_t r = 0; r < count; ++r) of_entropy[r] = entropy_at(i + r);
        if (heads <= kTileHeads) {
          const T* pi = p == nullptr ? nullptr : p + i * heads;
          tile_backward<T, A>(zi, pi, gi, of_entropy, end - i, heads, t, to + i * heads);
        } else {
          long_backward<T, A>(zi, gi, of_entropy[0], heads, t, to + i * heads);
        }
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace poh

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) {
  m.impl("route", TORCH_BOX(&poh::route));
  m.impl("route_backward", TORCH_BOX(&poh::route_backward));
  m.impl("routing_entropy", TORCH_BOX(&poh::routing_entropy));
}
