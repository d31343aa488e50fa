// Dropout whose mask is a function of a seed and of an element's place: nothing is drawn in turn, so threads and vectors
// share the work, and nothing is kept for the backward pass, which makes the same mask again.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "common/cpu.h"
#include "common/simd_loops.h"

namespace poh {
namespace {

constexpr int64_t kPairs = 32, kBlock = 2 * kPairs;  // one draw of 32 bits decides for two elements
constexpr int64_t kGrain = 256;                      // blocks a thread must have to be worth starting

// 32 random bits of place i: the hash "triple32" (C. Wellons, "Prospecting for Hash Functions"), keyed.
inline FloatBits bits_of(FloatBits i, uint32_t key, uint32_t second_key) {
  FloatBits x = i ^ key;
  x = (x ^ x >> 17) * 0xed5ad4bbu + second_key;
  x = (x ^ x >> 11) * 0xac4c1b51u;
  x = (x ^ x >> 15) * 0x31848babu;
  return x ^ x >> 14;
}

template <class A>
struct Mask {
  uint32_t threshold;  // of 16 bits: an element is dropped below it
  A scale;
  uint32_t key, second_key;

  // y = x times the mask of block b; kBlock elements of each, which may be the same.
  void apply(int64_t b, const A* x, A* y) const {
    constexpr int64_t W = kLanes<float>;
    const uint64_t first = static_cast<uint64_t>(b) * kPairs;
    const uint32_t second = second_key + static_cast<uint32_t>(first >> 32) * 0x9e3779b9u;
    FloatBits place;
    for (int64_t r = 0; r < W; ++r) place[r] = static_cast<uint32_t>(first) + static_cast<uint32_t>(r);
#pragma GCC unroll 8
    for (int64_t j = 0; j < kPairs; j += W) {
      const FloatBits bits = bits_of(place + static_cast<uint32_t>(j), key, second);
      keep(std::bit_cast<FloatInteger>(bits & 0xffffu), x + j, y + j);
      keep(std::bit_cast<FloatInteger>(bits >> 16), x + j + kPairs, y + j + kPairs);
    }
  }

 private:
  void keep(FloatInteger bits, const A* x, A* y) const {
    const FloatInteger kept = bits >= static_cast<int32_t>(threshold);  // all bits of a lane, or none
    if constexpr (std::is_same_v<A, float>) {
      store<float>(y, kept ? load(x) * scale : FloatVector{});
    } else {
      for (int64_t r = 0; r < kLanes<float>; ++r) y[r] = kept[r] ? x[r] * scale : A{0};
    }
  }
};

Tensor dropout(const Tensor& x_in, double p, int64_t seed) {
  check(p >= 0 && p < 1, "p must be in [0, 1), got ", p);
  const Tensor x = packed(x_in);
  const Tensor out = new_large(x);
  const uint32_t threshold = static_cast<uint32_t>(std::lround(p * 65536));
  dispatch(x.scalar_type(), "x", [&]<class T>(T) {
    using A = Accumulate<T>;
    // 1 / (1 - p) of the p that the threshold stands for; all is dropped at 65536 (p > 1 - 2^-17).
    const double kept = 1 - threshold / 65536.0;
    const uint64_t key = static_cast<uint64_t>(seed);
    const Mask<A> mask{threshold, static_cast<A>(kept > 0 ? 1 / kept : 0), static_cast<uint32_t>(key),
                       static_cast<uint32_t>(key >> 32)};
    const int64_t n = x.numel();
    const T* from = data<T>(x);
    T* to = data<T>(out);
    parallel((n + kBlock - 1) / kBlock, kGrain, [&](int64_t begin, int64_t end) {
      A buffer[kBlock];
      for (int64_t b = begin; b < end; ++b) {
        const int64_t at = b * kBlock, count = std::min(kBlock, n - at);
        if constexpr (std::is_same_v<T, A>) {
          if (count == kBlock) {
            mask.apply(b, from + at, to + at);
            continue;
          }
        }
        if (count < kBlock) std::fill(buffer, buffer + kBlock, A{0});
        convert(from + at, buffer, count);
        mask.apply(b, buffer, buffer);
        convert(buffer, to + at, count);
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace poh

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) { m.impl("dropout", TORCH_BOX(&poh::dropout)); }
