// Breadth-first search, shortest paths, the endpoints of tasks and greedy rollouts, one maze at a time, with scratch
// from the caller. poh_ext/reference/maze_graph.py is the same in PyTorch.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"
#include "common/philox.h"
#include "maze/grid.h"

namespace poh {

// A maze ready to be searched: `open` are its passages without any that would lead out of the grid.
struct MazeView {
  Grid grid;
  const uint8_t* open;
};

// The goals of one maze; a negative one is padding.
struct Goals {
  const int64_t* cells;
  int64_t count;
};

// Breadth-first search from the nearest of `sources` -> cells found, in order, in queue (cell * 16 + bits). Fills
// distance[N], -1 where nothing was found. Stops when `stop` is found (-1: never); cells nearer than `stop` are then
// all found.
POH_HOST_DEVICE int32_t maze_search(const MazeView& maze, const Goals& sources, int32_t stop, int32_t* distance,
                                    int32_t* queue) {
  const int32_t n = maze.grid.cells(), width = maze.grid.width;
  const int32_t step[4] = {-width, width, -1, 1};
  for (int32_t c = 0; c < n; ++c) distance[c] = -1;
  int32_t found = 0;
  for (int64_t i = 0; i < sources.count; ++i) {
    const int32_t source = static_cast<int32_t>(sources.cells[i]);
    if (source < 0 || distance[source] == 0) continue;
    distance[source] = 0;
    queue[found++] = source << 4 | maze.open[source];
    if (source == stop) return found;
  }
  for (int32_t head = 0; head < found; ++head) {
    const int32_t cell = queue[head] >> 4, there = distance[cell] + 1;
    for (uint32_t bits = queue[head] & 15; bits != 0; bits &= bits - 1) {
      const int direction = lowest_bit(bits);
      const int32_t to = cell + step[direction];
      if (distance[to] >= 0) continue;
      distance[to] = there;
      if (to == stop) return found;
      // The way back is left out of the bits: in a tree, all others lead to new cells.
      queue[found++] = to << 4 | (maze.open[to] & ~(1 << (direction ^ 1)));
    }
  }
  return found;
}

POH_HOST_DEVICE int32_t maze_search(const MazeView& maze, int32_t source, int32_t stop, int32_t* distance,
                                    int32_t* queue) {
  const int64_t one = source;
  return maze_search(maze, Goals{&one, 1}, stop, distance, queue);
}

// Follows falling distances from `start`; of equal ones the first of up, down, left, right. Writes the first `length`
// cells, then -1; returns the number of cells on the path, 0 if there is none.
POH_HOST_DEVICE int64_t maze_descend(const MazeView& maze, const int32_t* distance, int32_t start, int64_t length,
                                     int64_t* path) {
  const int32_t width = maze.grid.width;
  const int32_t step[4] = {-width, width, -1, 1};
  const int64_t cells = int64_t{distance[start]} + 1, written = cells < length ? cells : length;
  int32_t cell = start, left = distance[start];
  for (int64_t i = 0; i < written; ++i) {
    path[i] = cell;
    --left;
    for (uint32_t bits = maze.open[cell]; bits != 0; bits &= bits - 1) {
      const int32_t to = cell + step[lowest_bit(bits)];
      if (distance[to] == left && left >= 0) {
        cell = to;
        break;
      }
    }
  }
  for (int64_t i = written; i < length; ++i) path[i] = -1;
  return cells;
}

struct EndpointScratch {
  int32_t *distance, *queue, *other, *order, *bound;  // N each
};

struct Endpoints {
  int32_t start, goal, longest;
};

// The first of the farthest cells of a search.
POH_HOST_DEVICE int32_t farthest_cell(const int32_t* distance, const int32_t* queue, int32_t found) {
  const int32_t most = distance[queue[found - 1] >> 4];
  int32_t first = queue[found - 1] >> 4;
  for (int32_t i = found - 1; i >= 0 && distance[queue[i] >> 4] == most; --i) {
    first = queue[i] >> 4 < first ? queue[i] >> 4 : first;
  }
  return first;
}

// After a search from a start that reaches nothing far enough: upper bounds of the eccentricities of the cells it
// found, so that those are not searched in vain. See _eccentricity_bound in the reference.
POH_HOST_DEVICE void bound_eccentricities(const MazeView& maze, const EndpointScratch& s, int32_t found,
                                          int32_t* longest) {
  const int32_t reach = s.distance[s.queue[found - 1] >> 4];
  int32_t passages = 0;
  for (int32_t i = 0; i < found; ++i) passages += count_bits(maze.open[s.queue[i] >> 4]);
  if (passages != 2 * (found - 1)) {
    for (int32_t i = 0; i < found; ++i) {
      const int32_t c = s.queue[i] >> 4, by_start = s.distance[c] + reach;
      s.bound[c] = by_start < s.bound[c] ? by_start : s.bound[c];
    }
    return;
  }
  const int32_t end = farthest_cell(s.distance, s.queue, found);
  maze_search(maze, end, -1, s.distance, s.queue);
  const int32_t other_end = farthest_cell(s.distance, s.queue, found);
  const int32_t seen = s.distance[other_end] + 1;
  *longest = seen > *longest ? seen : *longest;
  maze_search(maze, other_end, -1, s.other, s.queue);
  for (int32_t i = 0; i < found; ++i) {
    const int32_t c = s.queue[i] >> 4, exact = s.distance[c] > s.other[c] ? s.distance[c] : s.other[c];
    s.bound[c] = exact < s.bound[c] ? exact : s.bound[c];
  }
}

// Start: the first cell, in the order of a Fisher-Yates shuffle (draw t: its t-th swap), from which some path has
// min_path cells or more. Goal: by draw N, one of the cells that fit it. Start -1: there is none. Longest: the longest
// path seen on the way, in cells. allowed[N]: the cells that may be a start; nullptr: all.
POH_HOST_DEVICE Endpoints find_endpoints(const MazeView& maze, uint64_t seed, uint64_t index, int64_t min_path,
                                         int64_t max_path, const uint8_t* allowed, const EndpointScratch& s) {
  const int32_t n = maze.grid.cells();
  Endpoints result{-1, -1, 0};
  int32_t alone = 0;  // from a cell without passages no way leads
  for (int32_t c = 0; c < n; ++c) s.order[c] = c;
  for (int32_t c = 0; c < n; ++c) {
    const int32_t bound = maze.open[c] ? n : 0;
    s.bound[c] = allowed == nullptr || allowed[c] ? bound : -2;  // less than any path needs
    alone |= s.bound[c] == 0;
  }
  result.longest = alone;
  for (int32_t attempt = 0; attempt < n; ++attempt) {
    const uint32_t word = philox_word(kStreamEndpoints, index, seed, static_cast<uint32_t>(attempt));
    const int32_t place = attempt + below(word, n - attempt), start = s.order[place];
    s.order[place] = s.order[attempt];
    if (s.bound[start] < min_path - 1) continue;
    const int32_t found = maze_search(maze, start, -1, s.distance, s.queue);
    const int32_t reach = s.distance[s.queue[found - 1] >> 4];
    result.longest = reach + 1 > result.longest ? reach + 1 : result.longest;
    if (reach < min_path - 1) {
      bound_eccentricities(maze, s, found, &result.longest);
      continue;
    }
    int32_t fits = 0;
    for (int32_t c = 0; c < n; ++c) fits += s.distance[c] >= min_path - 1 && s.distance[c] < max_path;
    int32_t which = below(philox_word(kStreamEndpoints, index, seed, static_cast<uint32_t>(n)), fits), goal = 0;
    for (;; ++goal) {
      if (s.distance[goal] >= min_path - 1 && s.distance[goal] < max_path && which-- == 0) break;
    }
    result.start = start;
    result.goal = goal;
    return result;
  }
  return result;
}

// Steps to the best-scored unvisited passable neighbour, else the best-scored passable one; ties go to the lower cell
// index, NaN counts as -inf. score(cell, direction, to) is only asked for passable neighbours. marks[N] is scratch;
// path[max_steps + 1]. Returns the moves made, and whether a goal was reached.
struct Walked {
  int64_t steps;
  bool reached;
};

template <class Score>
POH_HOST_DEVICE Walked maze_walk(const MazeView& maze, const Score& score, int32_t start, const Goals& goals,
                                 int64_t max_steps, uint8_t* marks, int64_t* path) {
  using Value = decltype(score(0, 0, 0));
  constexpr uint8_t kVisited = 1, kGoal = 2;
  const int32_t n = maze.grid.cells();
  const int order[4] = {0, 2, 3, 1};  // up, left, right, down: by rising cell index
  for (int32_t c = 0; c < n; ++c) marks[c] = 0;
  for (int64_t i = 0; i < goals.count; ++i) {
    if (goals.cells[i] >= 0) marks[goals.cells[i]] = kGoal;
  }
  int32_t cell = start;
  int64_t steps = 0;
  path[0] = start;
  for (; steps < max_steps && !(marks[cell] & kGoal) && maze.open[cell] != 0; path[++steps] = cell) {
    marks[cell] |= kVisited;
    int32_t best = -1;
    bool best_fresh = false;
    Value best_score{};
    for (int direction : order) {
      if (!(maze.open[cell] >> direction & 1)) continue;
      const int32_t to = cell + maze.grid.step(direction);
      const bool fresh = !(marks[to] & kVisited);
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
  return {steps, (marks[cell] & kGoal) != 0};
}

}  // namespace poh
