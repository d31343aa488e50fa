// The mathematics of softmax routing with entropy, for one row of H logits z at temperature t.
//
//   s_j = (z_j - max z) / t <= 0      e_j = exp(s_j)      Z = sum e_j      D = sum e_j s_j
//   weights p_j = e_j / Z             entropy = log Z - D / Z
//   d/dz_j = p_j ((g_j - sum_i p_i g_i) - h (s_j - D / Z)) / t,   g = d loss / d p, h = d loss / d entropy
//
// No log of a weight is taken, and the backward takes no log at all. Z >= 1 and D <= 0, so the entropy is >= 0.
#pragma once

#include <limits>

#include "common/exp_log.h"
#include "common/host_device.h"

namespace poh {

// 1 / t, kept finite and above 0: a t that small chooses the largest logit, and 0 * inf would be NaN.
template <class A>
POH_HOST_DEVICE A route_inverse_temperature(double temperature) {
  constexpr double most = static_cast<double>(std::numeric_limits<A>::max());
  constexpr double least = static_cast<double>(std::numeric_limits<A>::min());
  const double inverse = 1.0 / temperature;
  return static_cast<A>(inverse > most ? most : inverse < least ? least : inverse);
}

// s_j, raised to where its exponential is 0 anyway: for z_j = -inf, e_j s_j must be 0 and not 0 * inf. NaN stays.
// X: a number of type A, or a SIMD vector of them.
template <class X, class A>
POH_HOST_DEVICE X route_score(X z, X max, A inverse_temperature) {
  const X floor = X{} + (sizeof(A) == sizeof(double) ? A(-1000) : A(-100)), s = (z - max) * inverse_temperature;
  return floor > s ? floor : s;
}

// dot_mean: D / Z.
template <class A>
POH_HOST_DEVICE A route_entropy(A sum, A dot_mean) {
  return log_normal(sum) - dot_mean;
}

template <class X, class A>
POH_HOST_DEVICE X route_gradient(X p, X g, X g_mean, X h, X score, X dot_mean, A inverse_temperature) {
  return p * ((g - g_mean) - h * (score - dot_mean)) * inverse_temperature;
}

}  // namespace poh
