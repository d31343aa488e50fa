// exp, tanh and log without branches, for float, double, and the SIMD vectors of them in common/simd.h.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/host_device.h"

namespace poh {

// What exp_nonpositive and log_normal need to know about their argument type; common/simd.h adds the vectors.
template <class X>
struct ExpTraits;

template <>
struct ExpTraits<float> {
  using Scalar = float;
  using Bits = uint32_t;
  using Integer = int32_t;
  POH_HOST_DEVICE static float number(int32_t n) { return static_cast<float>(n); }
};

template <>
struct ExpTraits<double> {
  using Scalar = double;
  using Bits = uint64_t;
  using Integer = int64_t;
  POH_HOST_DEVICE static double number(int64_t n) { return static_cast<double>(n); }
};

// exp(x) for x <= 0 (a little above is harmless), within about 1 ulp; results below the smallest normal number
// are 0, NaN stays NaN. x = n ln 2 + r with |r| <= ln(2) / 2; adding `magic` rounds n to an integer and leaves it
// in the low bits of the mantissa, from where a shift brings it into the exponent. Polynomial: for float that of
// Cephes' expf, for double the Taylor series to r^13, whose remainder is below 2e-17.
template <class X>
POH_HOST_DEVICE X exp_nonpositive(X x) {
  using Traits = ExpTraits<X>;
  using Bits = typename Traits::Bits;
#if defined(__CUDA_ARCH__)
  // The hardware's 2^t (within 2 ulp), times what the rounding of t = x log2(e) left over.
  if constexpr (std::is_same_v<X, float>) {
    const float t = x * 1.44269504088896341f;
    const float left = fmaf(x, 1.44269504088896341f, -t) + x * 1.92596299e-8f;
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(t));
    return x < -87.3365f ? 0.0f : fmaf(power, left * 0.693147181f, power);
  }
#endif
  if constexpr (sizeof(typename Traits::Scalar) == 4) {
    constexpr float magic = 12582912.0f;  // 1.5 * 2^23
    const X t = x * 1.44269504088896341f + magic;
    const X n = t - magic;
    const X r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    X p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const X scale = std::bit_cast<X>((std::bit_cast<Bits>(t) << 23) + 0x3f800000u);
    return x < -87.3365f ? X{} : p * scale;
  } else {
    constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
    const X t = x * 1.4426950408889634 + magic;
    const X n = t - magic;
    const X r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
    X p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * (r * r) + r + 1.0;
    const X scale = std::bit_cast<X>((std::bit_cast<Bits>(t) << 52) + 0x3ff0000000000000ull);
    return x < -708.396 ? X{} : p * scale;
  }
}

// tanh within a few ulp: the series near 0, where the quotient would cancel.
POH_HOST_DEVICE float fast_tanh(float x) {
  const float a = x < 0 ? -x : x;
  const float e = exp_nonpositive(-2.0f * a);
  const float far = (1.0f - e) / (1.0f + e);
  const float s = x * x;
  float near = 2.18694885e-2f;
  near = near * s - 5.39682540e-2f;
  near = near * s + 1.33333333e-1f;
  near = near * s - 3.33333333e-1f;
  near = near * s * a + a;
  const float t = a < 0.25f ? near : far;
  return x < 0 ? -t : t;
}

POH_HOST_DEVICE double fast_tanh(double x) { return std::tanh(x); }

// log(x) for normal x > 0, within 2 ulp of 1 or of the result; NaN stays NaN. x = m 2^e with m in [sqrt(1/2),
// sqrt(2)); log m = 2 atanh(s) with s = (m - 1) / (m + 1), |s| < 0.172, by its series in s^2 < 0.0295: the first
// term left out is below 1e-9 (float) and 1e-18 (double). ln 2 comes in two parts.
template <class X>
POH_HOST_DEVICE X log_normal(X x) {
  using Traits = ExpTraits<X>;
  using Bits = typename Traits::Bits;
  using Integer = typename Traits::Integer;
  X result;
  if constexpr (sizeof(typename Traits::Scalar) == 4) {
    const Bits bits = std::bit_cast<Bits>(x) - 0x3f3504f3u;
    const X e = Traits::number(std::bit_cast<Integer>(bits) >> 23);
    const X m = std::bit_cast<X>((bits & 0x007fffffu) + 0x3f3504f3u);
    const X s = (m - 1.0f) / (m + 1.0f), q = s * s;
    X p = q * (1.0f / 9) + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    p = p * q * s + s;
    result = (2.0f * p + e * -2.12194440e-4f) + e * 0.693359375f;
  } else {
    const Bits bits = std::bit_cast<Bits>(x) - 0x3fe6a09e667f3bcdull;
    const X e = Traits::number(std::bit_cast<Integer>(bits) >> 52);
    const X m = std::bit_cast<X>((bits & 0x000fffffffffffffull) + 0x3fe6a09e667f3bcdull);
    const X s = (m - 1.0) / (m + 1.0), q = s * s;
    X p = q * (1.0 / 21) + 1.0 / 19;
    p = p * q + 1.0 / 17;
    p = p * q + 1.0 / 15;
    p = p * q + 1.0 / 13;
    p = p * q + 1.0 / 11;
    p = p * q + 1.0 / 9;
    p = p * q + 1.0 / 7;
    p = p * q + 1.0 / 5;
    p = p * q + 1.0 / 3;
    p = p * q * s + s;
    result = (2.0 * p + e * 1.90821492927058770002e-10) + e * 6.93147180369123816490e-01;
  }
  return x == x ? result : x;
}

}  // namespace poh
