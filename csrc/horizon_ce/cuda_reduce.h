// From the terms of the multi-horizon cross-entropy to its value and the coefficient of each term, on the device.
// Every sum runs in float64 in an order that depends on the shapes alone.
#pragma once

#include <tuple>

#include "common/device.h"
#include "common/warp.h"
#include "horizon_ce/arguments.h"

namespace poh::cuda {

// Sums over the batch for a place (i, k) = p / K, p % K + 1.
struct PlaceSums {
  double weight, sum, count, hits;
};

// A warp for each place, a lane for each entry of the batch.
template <class A>
__global__ void __launch_bounds__(128)
    sum_places(LossCall<A> c, const A* terms, const uint8_t* correct, PlaceSums* out) {
  const int64_t places = c.L * c.K, step = gridDim.x * static_cast<int64_t>(blockDim.x / kWarp);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t p = blockIdx.x * static_cast<int64_t>(blockDim.x / kWarp) + threadIdx.x / kWarp; p < places; p += step) {
    const int64_t i = p / c.K, k = p % c.K + 1;
    PlaceSums s{0, 0, 0, 0};
    for (int64_t b = lane; b < c.B; b += kWarp) {
      if (c.row_read(b, i) < 0) continue;
      const int64_t y = c.target(b, i, k), at = b * places + p;
      if (y < 0) continue;
      s.weight += static_cast<double>(c.weight(y));
      s.sum += static_cast<double>(terms[at]);
      s.count += 1;
      if (correct != nullptr) s.hits += correct[at];
    }
    s = {warp_sum(s.weight), warp_sum(s.sum), warp_sum(s.count), warp_sum(s.hits)};
    if (lane == 0) out[p] = s;
  }
}

// One block. coefficients [L, K]; value: null for kNone; metrics [3, K]: null if not asked for.
template <class A>
__global__ void __launch_bounds__(256)
    finish_reduction(const PlaceSums* places, int64_t L, int64_t K, const A* horizon_weights, Reduction reduction,
                     A* coefficients, A* value, A* metrics) {
  const int64_t n = L * K;
  const auto weight = [=](int64_t p) {
    return horizon_weights == nullptr ? 1.0 : static_cast<double>(horizon_weights[p % K]);
  };
  for (int64_t k = 0; metrics != nullptr && k < K; ++k) {
    PlaceSums s{0, 0, 0, 0};
    for (int64_t i = threadIdx.x; i < L; i += blockDim.x) {
      const PlaceSums& one = places[i * K + k];
      s.weight += one.weight, s.sum += one.sum, s.count += one.count, s.hits += one.hits;
    }
    const double hits = block_sum(s.hits), count = block_sum(s.count);
    const double sum = block_sum(s.sum), all = block_sum(s.weight);
    if (threadIdx.x == 0) {
      metrics[k] = static_cast<A>(hits / count);
      metrics[K + k] = static_cast<A>(count == 0 ? NAN : weighed(mean_factor(all), sum));
      metrics[2 * K + k] = static_cast<A>(all);
    }
  }
  if (reduction == kNone) {
    for (int64_t p = threadIdx.x; p < n; p += blockDim.x) coefficients[p] = static_cast<A>(weight(p));
    return;
  }
  const bool per_place = reduction == kPositionMean;
  double total = 0;
  for (int64_t p = threadIdx.x; p < n; p += blockDim.x) {
    total += weight(p) * (per_place ? (places[p].weight != 0 ? 1.0 : 0.0) : places[p].weight);
  }
  POH_SHARED(double, factor, 1);
  total = block_sum(total);
  if (threadIdx.x == 0) *factor = reduction == kSum ? 1.0 : mean_factor(total);
  __syncthreads();
  double sum = 0;
  for (int64_t p = threadIdx.x; p < n; p += blockDim.x) {
    const double each = weight(p) * *factor * (per_place ? mean_factor(places[p].weight) : 1.0);
    coefficients[p] = static_cast<A>(each);
    sum += weighed(each, places[p].sum);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) *value = static_cast<A>(sum);
}

template <class A>
__global__ void __launch_bounds__(256) weight_terms(A* terms, int64_t n, int64_t K, const A* horizon_weights) {
  const int64_t step = gridDim.x * static_cast<int64_t>(blockDim.x);
  for (int64_t j = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; j < n; j += step) {
    terms[j] = weighed(horizon_weights[j % K], terms[j]);
  }
}

template <class A>
__global__ void __launch_bounds__(256) sum_weights(const A* w, int64_t n, A* out) {
  double sum = 0;
  for (int64_t v = threadIdx.x; v < n; v += blockDim.x) sum += static_cast<double>(w[v]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) *out = static_cast<A>(sum);
}

// What both forms ask of a device, on CUDA: as CpuLoss in cpu_terms.h.
struct CudaLoss : Cuda {
  template <class A>
  static Tensor total(const Tensor& class_weight) {
    const Tensor out = empty(class_weight, dtype_of<A>(), 1);
    launch(&sum_weights<A>, class_weight, Shape{1, 256}, data<const A>(class_weight), class_weight.numel(),
           data<A>(out));
    return out;
  }

  template <class A>
  static std::tuple<Tensor, Tensor, Tensor> reduce(const LossCall<A>& c, const optional<Tensor>& horizon_weights,
                                                   Reduction reduction, const Tensor& terms,
                                                   const optional<Tensor>& correct) {
    const int64_t places = c.L * c.K;
    const Tensor coefficients = empty(terms, terms.scalar_type(), c.L, c.K);
    const Tensor metrics = empty(terms, terms.scalar_type(), 3, correct ? c.K : 0);
    const Tensor sums = empty(terms, ScalarType::Double, places * 4);
    const A* const weights = data<A>(horizon_weights);
    PlaceSums* const at = reinterpret_cast<PlaceSums*>(data<double>(sums));
    if (places > 0 && (reduction != kNone || correct)) {
      launch(&sum_places<A>, terms, Shape{blocks_for(terms, places, 128 / kWarp), 128}, c, data<A>(terms),
             data<uint8_t>(correct), at);
    }
    const Tensor value = reduction == kNone ? terms : empty(terms, terms.scalar_type());
    launch(&finish_reduction<A>, terms, Shape{1, 256}, at, c.L, c.K, weights, reduction, data<A>(coefficients),
           data<A>(value), correct ? data<A>(metrics) : nullptr);
    if (reduction == kNone && weights != nullptr && terms.numel() > 0) {
      launch(&weight_terms<A>, terms, Shape{blocks_for(terms, terms.numel(), 256), 256}, data<A>(terms), terms.numel(),
             c.K, weights);
    }
    return {value, coefficients, metrics};
  }
};

}  // namespace poh::cuda
