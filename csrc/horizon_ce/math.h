// The mathematics of one term of the multi-horizon cross-entropy, and of its gradient.
//
// A row of V logits z is asked for class y. With lse = log sum_c exp(z_c), class weights w (1 if not given),
// smoothing s spread over the n classes of a set S, and a penalty zeta on lse^2:
//
//   term = (1 - s) w_y (lse - z_y) + s / n * sum_{c in S} w_c (lse - z_c) + zeta w_y lse^2
//   d term / d z_v = prob exp(z_v - lse) - [v in S] spread w_v - [v = y] hit
//
// At horizon 1 under a mask, S are the allowed classes, and lse runs over them alone: the others count for nothing and
// get no gradient. If y is one of these, disallowed_below() stands for its logit, so that the loss is large but finite.
#pragma once

#include <cstdint>
#include <limits>

#include "common/exp_log.h"
#include "common/host_device.h"

namespace poh {

// Which row a position reads is no class: an ignore_index that is one, as the number 0 of a padding, skips no row.
// Of the negative numbers, -1 and the ignore_index skip a position.
POH_HOST_DEVICE int64_t skipping_row(int64_t ignore) { return ignore < 0 ? ignore : -1; }
POH_HOST_DEVICE bool skips_row(int64_t r, int64_t ignore) { return (r == -1) | (r == skipping_row(ignore)); }

// z_y - max of a target y that is not allowed, where max is the largest allowed logit: z_y is -1e4 or, below a max of
// -5000, max - 1e4. No gradient flows into it.
template <class X>
POH_HOST_DEVICE X disallowed_below(X max) {
  using A = typename ExpTraits<X>::Scalar;
  const X fixed = A(-1e4) - max, moving = A(-1e4) + X{};
  return max < A(-5000) ? moving : fixed;
}

template <class A>
struct TermOptions {
  A smoothing;  // s
  A z_loss;     // zeta
};

// lse in two parts: for logits of 1e8 their float32 sum would lose the second.
template <class A>
struct LogSumExp {
  A max;
  A log_sum;  // log sum_c exp(z_c - max)
};

// Sums over the set S of one row.
template <class A>
struct Smoothed {
  A count;  // n
  A mass;   // sum of w_c
  A dot;    // sum of w_c (z_c - max)
};

// X: a number of type A, or a SIMD vector of them. below: z_y - max.
template <class X, class A>
POH_HOST_DEVICE X term_value(const LogSumExp<X>& lse, X below, X w_y, const Smoothed<X>& set, const TermOptions<A>& o) {
  X value = w_y * (lse.log_sum - below);
  // Only where asked for: an infinite logit must not become 0 * inf.
  if (o.smoothing != 0) {
    value = (1 - o.smoothing) * value + o.smoothing * (set.mass / set.count * lse.log_sum - set.dot / set.count);
  }
  if (o.z_loss != 0) value += o.z_loss * w_y * (lse.max + lse.log_sum) * (lse.max + lse.log_sum);
  return value;
}

// The gradient of all terms of a row with one set S: coefficients add up over its terms.
template <class X>
struct RowGradient {
  X prob{};
  X spread{};

  // Adds a term that enters the loss with coefficient c; returns its hit on z_y.
  template <class A>
  POH_HOST_DEVICE X add(X c, const LogSumExp<X>& lse, X w_y, X mass, X count, const TermOptions<A>& o) {
    const X hit = c * (1 - o.smoothing) * w_y;
    X part = hit;
    if (o.smoothing != 0) {  // only where asked for: the weight of a class that is no target may be infinite
      part += c * o.smoothing * mass / count;
      spread += c * o.smoothing / count;
    }
    prob += part;
    if (o.z_loss != 0) prob += c * (2 * o.z_loss) * w_y * (lse.max + lse.log_sum);
    return hit;
  }
};

// d cap(z) / d z from capped = cap(z) = cap tanh(z / cap).
template <class A>
POH_HOST_DEVICE A cap_slope(A capped, A cap) {
  return 1 - (capped / cap) * (capped / cap);
}

// A term of no weight counts for nothing, even where it is infinite.
template <class A>
POH_HOST_DEVICE A weighed(A coefficient, A term) {
  return coefficient == 0 ? A(0) : coefficient * term;
}

// What turns a sum of terms of this weight into their mean; 0 where there is no term, or none of weight. There is no
// mean of infinite weights: NaN, where 1 / weight would be 0.
POH_HOST_DEVICE double mean_factor(double weight) { return weight == 0 ? 0.0 : (1.0 + (weight - weight)) / weight; }

// Sums over a row of logits in one read, the maximum not being known before (Milakov and Gimelshein, "Online
// normalizer calculation for softmax", 2018): what was summed so far is rescaled when a larger logit comes.
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
