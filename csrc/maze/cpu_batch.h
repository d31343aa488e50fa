// A batch of mazes as the CPU kernels see it: checked once, safe to walk whatever bits the caller set.
#pragma once

#include <algorithm>
#include <vector>

#include "common/checks.h"
#include "common/index_errors.h"
#include "maze/graph.h"
#include "maze/grid.h"
#include "maze/checks.h"

namespace poh {

struct MazeBatch {
  Grid grid;
  int64_t batch, n;
  const uint8_t* passages;
  std::vector<uint8_t> inside;  // [N] directions that stay in the grid

  explicit MazeBatch(const Tensor& tensor) {
    check_tensor(tensor, "passages", ScalarType::Byte, 3);
    grid = checked_grid(tensor.size(1), tensor.size(2));
    batch = tensor.size(0);
    n = grid.cells();
    passages = tensor.const_data_ptr<uint8_t>();
    inside.resize(n);
    for (int32_t c = 0; c < n; ++c) inside[c] = grid.inside(c / grid.width, c % grid.width);
  }

  // Maze b, its passages copied to open[N] without those that would lead out of the grid.
  MazeView view(int64_t b, uint8_t* open) const {
    for (int64_t c = 0; c < n; ++c) open[c] = passages[b * n + c] & inside[c];
    return {grid, open};
  }

  // Mazes a thread takes at least.
  int64_t grain() const { return std::max<int64_t>(1, 2048 / n); }

  // One cell for each maze, all in range.
  const int64_t* cells(const char* name, const Tensor& tensor) const {
    check_tensor(tensor, name, ScalarType::Long, 1);
    check(tensor.size(0) == batch, name, " must be [", batch, "], one cell for each maze, got [", tensor.size(0), "]");
    const int64_t* cell = tensor.const_data_ptr<int64_t>();
    for (int64_t b = 0; b < batch; ++b) {
      if (cell[b] < 0 || cell[b] >= n) cell_error(name, b, cell[b], n);
    }
    return cell;
  }
};

}  // namespace poh
