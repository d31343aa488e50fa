// The grid a maze lives on: cells numbered row by row, directions, and which of them stay inside.
#pragma once

#include <cstdint>

#if defined(_MSC_VER)
#include <intrin.h>
#endif

#include "common/host_device.h"

namespace poh {

// Directions, also the bits of `passages`: 0 up, 1 down, 2 left, 3 right. The opposite of d is d ^ 1.
struct Grid {
  int32_t height, width;

  POH_HOST_DEVICE int32_t cells() const { return height * width; }
  POH_HOST_DEVICE int32_t walls() const { return 2 * cells() - height - width; }
  POH_HOST_DEVICE int32_t step(int direction) const {
    const int32_t size = direction < 2 ? width : 1;
    return direction & 1 ? size : -size;
  }
  // Bits of the directions that stay inside the grid.
  POH_HOST_DEVICE uint8_t inside(int32_t row, int32_t column) const {
    return static_cast<uint8_t>((row > 0) | (row < height - 1) << 1 | (column > 0) << 2 | (column < width - 1) << 3);
  }
};

// Number of set bits of a four-bit mask.
POH_HOST_DEVICE int32_t count_bits(uint32_t mask) {
  return static_cast<int32_t>((0x4332322132212110ull >> (4 * mask)) & 15);
}

POH_HOST_DEVICE int lowest_bit(uint32_t mask) {
#if defined(__CUDA_ARCH__)
  return __ffs(static_cast<int>(mask)) - 1;
#elif defined(_MSC_VER)
  unsigned long place;
  _BitScanForward(&place, mask);
  return static_cast<int>(place);
#else
  return __builtin_ctz(mask);
#endif
}

}  // namespace poh
