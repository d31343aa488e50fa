// Softmax over heads with its entropy, forward and backward: each logit is read once and each result written once.
// A row of up to 32 heads is held by as many lanes as the next power of two, one head each, so that a warp reads
// several rows in one go; longer rows are walked by a warp and found in the first cache the second time.
#include <tuple>
#include <vector>

#include "common/tensors.h"
#include "common/warp.h"
#include "routing/math.h"

namespace poh::cuda {
namespace {

constexpr int kThreads = 256;

enum Reduction : int64_t { kMean = 0, kSum = 1, kNone = 2 };

// The rows a warp works on at a time, lane by lane.
struct Place {
  int lanes;  // of each row
  int lane;   // of this thread within its row
  int64_t first, step;

  __device__ explicit Place(int lanes_) : lanes(lanes_), lane(static_cast<int>(threadIdx.x) % lanes_) {
    const int64_t warp = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) / kWarp;
    const int per_warp = kWarp / lanes;
    first = warp * per_warp;
    step = gridDim.x * static_cast<int64_t>(blockDim.x / kWarp) * per_warp;
  }
  // first + this lane's row of the warp's rows
  __device__ int64_t row(int64_t base) const { return base + static_cast<int>(threadIdx.x) % kWarp / lanes; }
};

// One row as a lane sees it: elements lane, lane + lanes, ..., the first of them in a register.
template <class T, class A>
struct Row {
  const T* z;
  int heads;  // 0 past the last row: such lanes only take part in the shuffles
  int lane;
  A first;

  __device__ Row(const T* z_, int heads_, int lane_)
      : z(z_), heads(heads_), lane(lane_), first(lane_ < heads_ ? static_cast<A>(z_[lane_]) : A(0)) {}
  __device__ A operator[](int j) const { return j == lane ? first : static_cast<A>(z[j]); }
};

template <class A>
struct Softmax {
  A max, sum, dot_mean, g_mean;
};

template <class T, class A>
__device__ Softmax<A> softmax(const Row<T, A>& row, const T* g, int lanes, A inverse) {
  A max = -std::numeric_limits<A>::infinity();
  for (int j = row.lane; j < row.heads; j += lanes) max = row[j] > max ? row[j] : max;
  max = warp_max(max, lanes);
  A sum = 0, dot = 0, mean = 0;
  for (int j = row.lane; j < row.heads; j += lanes) {
    const A s = route_score(row[j], max, inverse), e = exp_nonpositive(s);
    sum += e;
    dot += e * s;
    if (g != nullptr) mean += e * static_cast<A>(g[j]);
  }
  sum = warp_sum(sum, lanes);
  dot = warp_sum(dot, lanes);
  if (g != nullptr) mean = warp_sum(mean, lanes);
  return {max, sum, dot / sum, mean / sum};
}

// weights, entropy and wide_entropy (the same, unrounded) may each be null.
template <class T, class A>
__global__ void __launch_bounds__(kThreads)
    route_forward(const T* logits, int64_t rows, int heads, int lanes, A inverse, T* weights, T* entropy,
                  A* wide_entropy) {
  const Place at(lanes);
  for (int64_t base = at.first; base < rows; base += at.step) {
    const int64_t r = at.row(base);
    const Row<T, A> row(logits + r * heads, r < rows ? heads : 0, at.lane);
    const Softmax<A> p = softmax<T, A>(row, nullptr, lanes, inverse);
    if (weights != nullptr) {
      T* out = weights + r * heads;
      for (int j = at.lane; j < row.heads; j += lanes) {
        out[j] = static_cast<T>(exp_nonpositive(route_score(row[j], p.max, inverse)) / p.sum);
      }
    }
    if (at.lane == 0 && r < rows) {
      const A value = route_entropy(p.sum, p.dot_mean);
      if (entropy != nullptr) entropy[r] = static_cast<T>(value);
      if (wide_entropy != nullptr) wide_entropy[r] = value;
    }
  }
}

// grad_entropy: one value for each row, or the same one for all; grad_weights may be null.
template <class T, class A>
__global__ void __launch_bounds__(kThreads)
    route_gradients(const T* logits, const T* grad_weights, const T* grad_entropy, bool one_entropy, A scale,
                    int64_t rows, int heads, int lanes, A inverse, T* out) {
  const Place at(lanes);
  for (int64_t base = at.first; base < rows; base += at.step) {
    const int64_t r = at.row(base);
    const Row<T, A> row(logits + r * heads, r < rows ? heads : 0, at.lane);
    const T* g = grad_weights == nullptr ? nullptr : grad_weights + r * heads;
    const Softmax<A> p = softmax<T, A>(row, g, lanes, inverse);
    if (r >= rows) continue;
    const A h = static_cast<A>(grad_entropy[one_entropy ? 0 : r]) * scale;
    for (int j = at.lane; j < row.heads; j += lanes) {
      const A s = route_score(row[j], p.max, inverse);
      const A gj = g == nullptr ? A(0) : static_cast<A>(g[j]);
      out[r * heads + j] =
          static_cast<T>(route_gradient(exp_nonpositive(s) / p.sum, gj, p.g_mean, h, s, p.dot_mean, inverse));
    }
  }
}

// One block, so that the order of the sum depends on n alone.
template <class T, class A>
__global__ void sum_entropies(const A* x, int64_t n, double divisor, T* out) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *out = static_cast<T>(static_cast<A>(sum / divisor));
}

struct Geometry {
  int64_t rows;
  int heads;
  int lanes = 1;

  explicit Geometry(const Tensor& logits) {
    check(logits.dim() >= 1 && logits.size(logits.dim() - 1) >= 1, "logits must have shape [..., H] with H >= 1");
    const int64_t last = logits.size(logits.dim() - 1);
    check(last < (int64_t{1} << 30), "logits must have fewer than 2^30 heads");
    heads = static_cast<int>(last);
    rows = logits.numel() / heads;
    while (lanes < heads && lanes < kWarp) lanes *= 2;
  }
  Shape shape(const Tensor& on) const { return {blocks_for(on, rows, kThreads / lanes), kThreads}; }
};

Tensor empty_rows(const Tensor& logits) {
  const auto sizes = logits.sizes();
  return torch::stable::new_empty(logits, std::vector<int64_t>(sizes.begin(), sizes.end() - 1));
}

std::tuple<Tensor, Tensor> route(const Tensor& logits_in, double temperature) {
  const Tensor logits = packed(logits_in, logits_in, "logits");
  const Geometry g(logits);
  const Tensor weights = torch::stable::new_empty(logits, logits.sizes()), entropy = empty_rows(logits);
  if (g.rows == 0) return {weights, entropy};
  dispatch(logits.scalar_type(), "logits", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    launch(&route_forward<T, A>, logits, g.shape(logits), data<T>(logits), g.rows, g.heads, g.lanes,
           route_inverse_temperature<A>(temperature), data<T>(weights), data<T>(entropy), static_cast<A*>(nullptr));
  });
  return {weights, entropy};
}

Tensor routing_entropy(const Tensor& logits_in, double temperature, int64_t reduction) {
  check(reduction >= kMean && reduction <= kNone, "reduction must be 0 (mean), 1 (sum) or 2 (none)");
  const Tensor logits = packed(logits_in, logits_in, "logits");
  const Geometry g(logits);
  const bool reduced = reduction != kNone;
  const Tensor out = reduced ? empty(logits, logits.scalar_type()) : empty_rows(logits);
  if (!reduced && g.rows == 0) return out;
  dispatch(logits.scalar_type(), "logits", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    T* const none = nullptr;
    const Tensor wide = empty(logits, dtype_of<A>(), reduced ? g.rows : 0);
    if (g.rows > 0) {
      launch(&route_forward<T, A>, logits, g.shape(logits), data<T>(logits), g.rows, g.heads, g.lanes,
             route_inverse_temperature<A>(temperature), none, reduced ? none : data<T>(out),
             reduced ? data<A>(wide) : static_cast<A*>(nullptr));
    }
    if (!reduced) return;
    const double divisor = reduction == kMean && g.rows > 0 ? static_cast<double>(g.rows) : 1.0;
    launch(&sum_entropies<T, A>, logits, Shape{1, 1024}, data<A>(wide), g.rows, divisor, data<T>(out));
  });
  return out;
}

// grad_entropy: one value per row, or a single one for all rows (of a reduced entropy); times entropy_scale.
// The weights of the forward pass are checked and not read: here, exponentials are cheaper than another read.
Tensor route_backward(const std::optional<Tensor>& grad_weights_in, const Tensor& grad_entropy_in,
                      double entropy_scale, const Tensor& logits_in, const std::optional<Tensor>& weights,
                      double temperature) {
  const Tensor logits = packed(logits_in, logits_in, "logits");
  const auto grad_weights = packed(grad_weights_in, logits, "grad_weights");
  const Tensor grad_entropy = packed(grad_entropy_in, logits, "grad_entropy");
  const Geometry g(logits);
  const bool one = grad_entropy.dim() == 0;
  check(one || grad_entropy.numel() == g.rows, "grad_entropy must have one value, or one per row of logits");
  check(grad_entropy.scalar_type() == logits.scalar_type(), "grad_entropy must have the dtype of logits");
  const auto check_like = [&](const std::optional<Tensor>& t, const char* name) {
    check(!t || t->numel() == logits.numel(), name, " must have the shape of logits");
    check(!t || t->scalar_type() == logits.scalar_type(), name, " must have the dtype of logits");
  };
  check_like(grad_weights, "grad_weights");
  check_like(weights, "weights");
  const Tensor out = torch::stable::new_empty(logits, logits.sizes());
  if (g.rows == 0) return out;
  dispatch(logits.scalar_type(), "logits", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    launch(&route_gradients<T, A>, logits, g.shape(logits), data<T>(logits), data<T>(grad_weights),
           data<T>(grad_entropy), one, static_cast<A>(entropy_scale), g.rows, g.heads, g.lanes,
           route_inverse_temperature<A>(temperature), data<T>(out));
  });
  return out;
}

}  // namespace
}  // namespace poh::cuda

POH_CUDA_LIBRARY(m) {
  m.impl("route", TORCH_BOX(&poh::cuda::route));
  m.impl("route_backward", TORCH_BOX(&poh::cuda::route_backward));
  m.impl("routing_entropy", TORCH_BOX(&poh::cuda::routing_entropy));
}
