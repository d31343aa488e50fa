// Sums over a row of logits in one read, the maximum not being known before (Milakov and Gimelshein, "Online
// normalizer calculation for softmax", 2018): what was summed so far is rescaled when a larger logit comes.
#pragma once

#include <cstdint>
#include <limits>

#include "common/exp.h"
#include "common/host_device.h"

namespace poh {

template <class A>
struct OnlineRow {
  A max = -std::numeric_limits<A>::infinity();  // NaN are passed over: they reach sum
  A sum = 0;    // of exp(z - max)
  A dot = 0;    // of w (z - max)
  A mass = 0;   // of w
  int64_t count = 0;
  int64_t best = std::numeric_limits<int64_t>::max();  // the first class whose logit is max

  // Class v with logit z and weight w. Two infinities of a kind differ by NaN, as they must in the end; but until a
  // finite logit comes, -inf counts as the 0 it will be.
  POH_HOST_DEVICE void add(A z, A w, int64_t v) {
    constexpr A infinity = std::numeric_limits<A>::infinity();
    if (z > max) {
      sum = sum * exp_nonpositive(max - z) + (A(1) + (z - z));
      if (mass != 0) dot += mass * (max - z);
      max = z;
      best = v;
    } else {
      if (z == max && v < best) best = v;
      const bool nothing_yet = max == -infinity;
      const A x = nothing_yet ? z : z - max;
      sum += exp_nonpositive(x);
      dot += w * x;
    }
    mass += w;
    ++count;
  }

  // Classes v, v + 1, ..., which are above all that were added before: as add() one by one, but one rescaling for all.
  // weight(j): that of class v + j.
  template <int kCount, class Weight>
  POH_HOST_DEVICE void add_above(const A (&z)[kCount], const Weight& weight, int64_t v) {
    constexpr A infinity = std::numeric_limits<A>::infinity();
    A most = -infinity;
    for (int j = 0; j < kCount; ++j) most = z[j] > most ? z[j] : most;
    if (most > max) {
      sum *= exp_nonpositive(max - most);
      if (mass != 0) dot += mass * (max - most);
      max = most;
      for (int j = kCount; j-- > 0;) best = z[j] == most ? v + j : best;
    }
    const A base = max == -infinity ? A(0) : max;
    for (int j = 0; j < kCount; ++j) {
      const A x = z[j] - base, w = weight(j);
      sum += exp_nonpositive(x);
      dot += w * x;
      mass += w;
    }
    count += kCount;
  }

  POH_HOST_DEVICE void merge(const OnlineRow& o) {
    if (o.max > max) {
      sum *= exp_nonpositive(max - o.max);
      if (mass != 0) dot += mass * (max - o.max);
      sum += o.sum;
      dot += o.dot;
      max = o.max;
      best = o.best;
    } else {
      const bool equal = o.max == max;  // also for two times -inf
      sum += equal ? o.sum : o.sum * exp_nonpositive(o.max - max);
      dot += o.dot;
      if (o.mass != 0 && !equal) dot += o.mass * (o.max - max);
      if (equal && o.best < best) best = o.best;
    }
    mass += o.mass;
    count += o.count;
  }

  // log sum exp(z - max); NaN for a row of nothing but -inf, as in log_softmax.
  POH_HOST_DEVICE A log_sum() const { return std::log(sum) + (max - max); }
};

}  // namespace poh
