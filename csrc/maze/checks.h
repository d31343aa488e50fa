// What every backend asks of the size of a maze.
#pragma once

#include "common/checks.h"
#include "maze/grid.h"

namespace poh {

// Cells are int32 and are packed with four bits beside them.
constexpr int64_t kMaxCells = int64_t{1} << 26;

inline Grid checked_grid(int64_t height, int64_t width) {
  check(height >= 1 && width >= 1, "size must be at least 1, got (", height, ", ", width, ")");
  check(height <= kMaxCells / width, "size must be at most ", kMaxCells, " cells, got (", height, ", ", width, ")");
  return {static_cast<int32_t>(height), static_cast<int32_t>(width)};
}

}  // namespace poh
