// log without branches, for float, double, and the SIMD vectors of them in common/simd.h.
#pragma once

#include <bit>
#include <cstdint>

#include "common/exp.h"
#include "common/host_device.h"

namespace poh {

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
