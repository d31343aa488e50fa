// log for float and double, branch-free, so that loops over it vectorise on any target.
#pragma once

#include <bit>
#include <cstdint>

#include "math/host_device.h"

namespace poh {

// log(x) for normal x > 0, within 2 ulp of 1 or of the result; NaN stays NaN. x = m 2^e with m in [sqrt(1/2),
// sqrt(2)); log m = 2 atanh(s) with s = (m - 1) / (m + 1), |s| < 0.172, by its series in s^2 < 0.0295: the first
// term left out is below 1e-9 (float) and 1e-18 (double).
POH_HOST_DEVICE float log_normal(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x) - 0x3f3504f3u;
  const int32_t e = static_cast<int32_t>(bits) >> 23;
  const float m = std::bit_cast<float>((bits & 0x007fffffu) + 0x3f3504f3u);
  const float s = (m - 1.0f) / (m + 1.0f), q = s * s;
  float p = 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  p = p * q * s + s;
  const float n = static_cast<float>(e);
  const float result = (2.0f * p + n * -2.12194440e-4f) + n * 0.693359375f;  // ln 2 in two parts
  return x == x ? result : x;
}

POH_HOST_DEVICE double log_normal(double x) {
  const uint64_t bits = std::bit_cast<uint64_t>(x) - 0x3fe6a09e667f3bcdull;
  const int64_t e = static_cast<int64_t>(bits) >> 52;
  const double m = std::bit_cast<double>((bits & 0x000fffffffffffffull) + 0x3fe6a09e667f3bcdull);
  const double s = (m - 1.0) / (m + 1.0), q = s * s;
  double p = 1.0 / 21;
  p = p * q + 1.0 / 19;
  p = p * q + 1.0 / 17;
  p = p * q + 1.0 / 15;
  p = p * q + 1.0 / 13;
  p = p * q + 1.0 / 11;
  p = p * q + 1.0 / 9;
  p = p * q + 1.0 / 7;
  p = p * q + 1.0 / 5;
  p = p * q + 1.0 / 3;
  p = p * q * s + s;
  const double n = static_cast<double>(e);
  const double result = (2.0 * p + n * 1.90821492927058770002e-10) + n * 6.93147180369123816490e-01;
  return x == x ? result : x;
}

}  // namespace poh
