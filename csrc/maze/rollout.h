// The greedy walk of one maze by a table of scores. poh_ext/reference/maze_rollout.py is the same in PyTorch.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"
#include "maze/graph.h"

namespace poh {

// Steps to the best-scored unvisited passable neighbour, else the best-scored passable one; ties go to the lower cell
// index, NaN counts as -inf. score(cell, direction, to) is only asked for passable neighbours. visited[N] is scratch;
// path[max_steps + 1]. Returns the moves made.
template <class Score>
POH_HOST_DEVICE int64_t maze_walk(const MazeView& maze, const Score& score, int32_t start, int32_t goal,
                                  int64_t max_steps, uint8_t* visited, int64_t* path) {
  using Value = decltype(score(0, 0, 0));
  const int32_t n = maze.grid.cells();
  const int order[4] = {0, 2, 3, 1};  // up, left, right, down: by rising cell index
  for (int32_t c = 0; c < n; ++c) visited[c] = 0;
  int32_t cell = start;
  int64_t steps = 0;
  path[0] = start;
  for (; steps < max_steps && cell != goal && maze.open[cell] != 0; path[++steps] = cell) {
    visited[cell] = 1;
    int32_t best = -1;
    bool best_fresh = false;
    Value best_score{};
    for (int direction : order) {
      if (!(maze.open[cell] >> direction & 1)) continue;
      const int32_t to = cell + maze.grid.step(direction);
      const bool fresh = !visited[to];
      if (best >= 0 && best_fresh && !fresh) continue;
      Value value = score(cell, direction, to);
      if (value != value) value = static_cast<Value>(-INFINITY);
      if (best < 0 || fresh != best_fresh || value > best_score) {
        best = to;
        best_fresh = fresh;
        best_score = value;
      }
    }
    cell = best;
  }
  for (int64_t i = steps + 1; i <= max_steps; ++i) path[i] = -1;
  return steps;
}

}  // namespace poh
