// Softmax over heads with its entropy, forward and backward: each logit is read once and each result written once.
// A row of up to 32 heads is held by as many lanes as the next power of two, one head each, so that a warp reads
// several rows in one go; longer rows are walked by a warp and found in the first cache the second time.
#include "common/warp.h"
#include "routing/ops.h"

namespace poh::cuda {
namespace {

constexpr int kRouteThreads = 256;

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
__global__ void __launch_bounds__(kRouteThreads)
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
__global__ void __launch_bounds__(kRouteThreads)
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

struct CudaRouting {
  template <class T, class A>
  static void forward(const RouteRows& in, A inverse, T* weights, T* entropy, A* wide_entropy = nullptr) {
    launch(&route_forward<T, A>, in.logits, shape(in), data<const T>(in.logits), in.rows, static_cast<int>(in.heads),
           lanes(in), inverse, weights, entropy, wide_entropy);
  }

  template <class T, class A>
  static void sum(const RouteRows& in, A inverse, double divisor, T* out) {
    const Tensor wide = empty(in.logits, dtype_of<A>(), in.rows);
    if (in.rows > 0) forward(in, inverse, static_cast<T*>(nullptr), static_cast<T*>(nullptr), data<A>(wide));
    launch(&sum_entropies<T, A>, in.logits, Shape{1, 1024}, data<const A>(wide), in.rows, divisor, out);
  }

  // The weights of the forward pass are not read: here, exponentials are cheaper than another read.
  template <class T, class A>
  static void backward(const RouteRows& in, A inverse, const T*, const T* grad_weights, const T* grad_entropy, bool one,
                       double scale, T* out) {
    launch(&route_gradients<T, A>, in.logits, shape(in), data<const T>(in.logits), grad_weights, grad_entropy, one,
           static_cast<A>(scale), in.rows, static_cast<int>(in.heads), lanes(in), inverse, out);
  }

 private:
  // Of each row: a power of two.
  static int lanes(const RouteRows& in) {
    check(in.heads < (int64_t{1} << 30), "logits must have fewer than 2^30 heads");
    int lanes = 1;
    while (lanes < in.heads && lanes < kWarp) lanes *= 2;
    return lanes;
  }
  static Shape shape(const RouteRows& in) {
    return {blocks_for(in.logits, in.rows, kRouteThreads / lanes(in)), kRouteThreads};
  }
};

}  // namespace
}  // namespace poh::cuda

POH_CUDA_LIBRARY(m) {
  using Ops = poh::RoutingOps<poh::cuda::CudaRouting>;
  m.impl("route", TORCH_BOX(&Ops::route));
  m.impl("route_backward", TORCH_BOX(&Ops::backward));
  m.impl("routing_entropy", TORCH_BOX(&Ops::entropy));
}
