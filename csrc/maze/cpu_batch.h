// A batch of mazes as the CPU kernels see it, safe to walk whatever bits the caller set; tables of a grid, built once a
// call and shared by its threads; and room for one maze a thread.
#pragma once

#include <algorithm>
#include <vector>

#include "common/cpu.h"
#include "maze/ops.h"

namespace poh {

struct CpuMazes : MazeBatch {
  std::vector<uint8_t> inside;  // [N] directions that stay in the grid

  explicit CpuMazes(const MazeBatch& mazes) : MazeBatch(mazes), inside(n) {
    for (int32_t c = 0; c < n; ++c) inside[c] = grid.inside(c / grid.width, c % grid.width);
  }

  // Maze b, its passages copied to open[N] without those that would lead out of the grid.
  MazeView view(int64_t b, uint8_t* open) const {
    for (int64_t c = 0; c < n; ++c) open[c] = passages[b * stride + c] & inside[c];
    return {grid, open};
  }

  // f(begin, end) for the mazes, at least so many for a thread.
  template <class F>
  void each(int64_t least, const F& f) const {
    parallel(batch, std::max<int64_t>(1, least), f);
  }
};

class GridTableStore {
 public:
  explicit GridTableStore(Grid grid) : grid_(grid) {
    for (int d = 0; d < 4; ++d) step_[d] = grid.step(d);
    for (int32_t mask = 0; mask < 16; ++mask) {
      for (int d = 0, k = 0; d < 4; ++d) {
        if (mask >> d & 1) pick_[4 * mask + k++] = static_cast<uint8_t>(d);
      }
    }
    const int32_t n = grid.cells();
    inside_.resize(n);
    next_.resize(4 * static_cast<size_t>(n));
    for (int32_t c = 0; c < n; ++c) {
      inside_[c] = grid.inside(c / grid.width, c % grid.width);
      for (int d = 0; d < 4; ++d) next_[4 * static_cast<size_t>(c) + d] = c + (inside_[c] >> d & 1 ? step_[d] : 0);
    }
    for (int direction : {1, 3}) {
      for (int32_t c = 0; c < n; ++c) {
        if (inside_[c] >> direction & 1) wall_.push_back(4 * c + direction);
      }
    }
  }

  GridTables get() const { return {grid_, inside_.data(), next_.data(), wall_.data(), pick_, step_}; }

 private:
  Grid grid_;
  std::vector<uint8_t> inside_;
  std::vector<int32_t> next_, wall_;
  uint8_t pick_[64] = {};
  int32_t step_[4];
};

class MazeScratchStore {
 public:
  explicit MazeScratchStore(Grid grid)
      : words_(std::max(grid.walls(), grid.cells()) + 5),
        list_(std::max(grid.walls(), grid.cells()) + 4),
        stack_(grid.cells()),
        flags_(grid.cells() + 2 * grid.width + 2) {}

  MazeScratch get() { return {words_.data(), list_.data(), stack_.data(), flags_.data()}; }

 private:
  std::vector<uint32_t> words_;
  std::vector<int32_t> list_;
  std::vector<uint64_t> stack_;
  std::vector<uint8_t> flags_;
};

}  // namespace poh
