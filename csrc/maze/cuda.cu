// Neighbours and masks of mazes: a thread per 32 or 16 bytes written. Distances, paths, endpoints and greedy rollouts: a
// thread per maze runs what is in maze/graph.h; of a rollout only the scores of the cells that are walked are read.
#include <tuple>

#include "maze/cuda_threads.h"
#include "maze/graph.h"

namespace poh::cuda {

namespace {

constexpr int kThreads = 256;

__device__ int64_t global_thread() { return blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; }
__device__ int64_t global_threads() { return gridDim.x * static_cast<int64_t>(blockDim.x); }

__global__ void __launch_bounds__(kThreads) write_neighbors(Mazes mazes, int64_t* out) {
  const int32_t n = mazes.grid.cells(), w = mazes.grid.width;
  for (int64_t i = global_thread(); i < mazes.batch * n; i += global_threads()) {
    const int32_t c = static_cast<int32_t>(i % n);
    const uint32_t open = mazes.passages[i] & mazes.grid.inside(c / w, c % w);
    for (int d = 0; d < 4; ++d) out[4 * i + d] = open >> d & 1 ? c + mazes.grid.step(d) : -1;
  }
}

// Each thread writes 16 of the batch * n * n bytes at a time (fewer at the end), and each of them once.
__global__ void __launch_bounds__(kThreads) write_valid_mask(Mazes mazes, uint8_t* out) {
  const Grid grid = mazes.grid;
  const int32_t n = grid.cells();
  const int64_t total = mazes.batch * n * n;
  for (int64_t first = global_thread() * 16; first < total; first += global_threads() * 16) {
    int64_t row = first / n;  // batch * n + cell
    int32_t to = static_cast<int32_t>(first - row * n), cell = static_cast<int32_t>(row % n);
    uint32_t open = mazes.passages[row] & grid.inside(cell / grid.width, cell % grid.width);
    const int count = static_cast<int>(total - first < 16 ? total - first : 16);
    alignas(16) uint8_t bytes[16];
    for (int j = 0; j < count; ++j) {
      uint8_t allowed = 0;
      for (int d = 0; d < 4; ++d) allowed |= (open >> d & 1) != 0 && to - cell == grid.step(d);
      bytes[j] = allowed;
      if (++to == n && j + 1 < count) {
        to = 0;
        ++row;
        cell = cell + 1 == n ? 0 : cell + 1;
        open = mazes.passages[row] & grid.inside(cell / grid.width, cell % grid.width);
      }
    }
    if (count == 16) {
      *reinterpret_cast<uint4*>(out + first) = *reinterpret_cast<const uint4*>(bytes);
    } else {
      for (int j = 0; j < count; ++j) out[first + j] = bytes[j];
    }
  }
}

struct Distances {
  Mazes mazes;
  const int64_t* goal;
  int32_t* out;

  static int64_t bytes(int64_t n) { return 2 * Scratch::bytes<int32_t>(n) + Scratch::bytes<uint8_t>(n); }
  __device__ void operator()(int64_t b, Scratch s) const {
    const int32_t n = mazes.grid.cells();
    int32_t *distance = s.take<int32_t>(n), *queue = s.take<int32_t>(n);
    const MazeView maze = mazes.view(b, s.take<uint8_t>(n));
    maze_search(maze, checked_cell(goal, b, n), -1, distance, queue);
    for (int32_t c = 0; c < n; ++c) out[b * n + c] = distance[c];
  }
};

struct ShortestPaths {
  Mazes mazes;
  const int64_t *start, *goal;
  int64_t length;
  int64_t *path, *count;

  __device__ void operator()(int64_t b, Scratch s) const {
    const int32_t n = mazes.grid.cells(), first = checked_cell(start, b, n);
    int32_t *distance = s.take<int32_t>(n), *queue = s.take<int32_t>(n);
    const MazeView maze = mazes.view(b, s.take<uint8_t>(n));
    maze_search(maze, checked_cell(goal, b, n), first, distance, queue);
    count[b] = maze_descend(maze, distance, first, length, path + b * length);
  }
};

struct FindEndpoints {
  Mazes mazes;
  const int64_t* indices;
  uint64_t seed;
  int64_t min_path, max_path;
  int64_t *start, *goal, *longest;

  static int64_t bytes(int64_t n) { return 5 * Scratch::bytes<int32_t>(n) + Scratch::bytes<uint8_t>(n); }
  __device__ void operator()(int64_t b, Scratch s) const {
    const int32_t n = mazes.grid.cells();
    const EndpointScratch room{s.take<int32_t>(n), s.take<int32_t>(n), s.take<int32_t>(n), s.take<int32_t>(n),
                               s.take<int32_t>(n)};
    const MazeView maze = mazes.view(b, s.take<uint8_t>(n));
    const uint64_t index = static_cast<uint64_t>(indices[b]);
    const Endpoints found = find_endpoints(maze, seed, index, min_path, max_path, room);
    start[b] = found.start;
    goal[b] = found.goal;
    longest[b] = found.longest;
  }
};

Tensor maze_neighbors(const Tensor& passages) {
  const Mazes mazes(passages);
  const int64_t n = mazes.grid.cells();
  const Tensor out = empty(passages, ScalarType::Long, mazes.batch, n, 4);
  if (mazes.batch > 0) {
    const Shape shape{blocks_for(passages, mazes.batch * n, kThreads), kThreads};
    launch(&write_neighbors, passages, shape, mazes, data<int64_t>(out));
  }
  return out;
}

Tensor maze_valid_mask(const Tensor& passages) {
  const Mazes mazes(passages);
  const int64_t n = mazes.grid.cells();
  const Tensor out = empty(passages, ScalarType::Bool, mazes.batch, n, n);
  if (mazes.batch > 0) {
    const Shape shape{blocks_for(passages, mazes.batch * n * n, kThreads * 16), kThreads};
    launch(&write_valid_mask, passages, shape, mazes, data<uint8_t>(out));
  }
  return out;
}

Tensor maze_distances(const Tensor& passages, const Tensor& goal) {
  const Mazes mazes(passages);
  const int64_t n = mazes.grid.cells();
  const Tensor out = empty(passages, ScalarType::Int, mazes.batch, n);
  const Distances job{mazes, mazes.cells("goal", goal, passages), data<int32_t>(out)};
  launch_mazes(passages, job, mazes.batch, Distances::bytes(n));
  return out;
}

std::tuple<Tensor, Tensor> maze_shortest_paths(const Tensor& passages, const Tensor& start, const Tensor& goal,
                                               int64_t length) {
  const Mazes mazes(passages);
  check(length >= 1, "length must be >= 1, got ", length);
  const Tensor paths = empty(passages, ScalarType::Long, mazes.batch, length);
  const Tensor cells = empty(passages, ScalarType::Long, mazes.batch);
  const ShortestPaths job{mazes,
                          mazes.cells("start", start, passages),
                          mazes.cells("goal", goal, passages),
                          length,
                          data<int64_t>(paths),
                          data<int64_t>(cells)};
  launch_mazes(passages, job, mazes.batch, Distances::bytes(mazes.grid.cells()));
  return {paths, cells};
}

std::tuple<Tensor, Tensor, Tensor> maze_endpoints(const Tensor& passages, const Tensor& indices, int64_t seed,
                                                  int64_t min_path, int64_t max_path) {
  const Mazes mazes(passages);
  check_form(indices, "indices", ScalarType::Long, 1);
  check(indices.is_contiguous() && indices.device() == passages.device(),
        "indices must be contiguous, on the device of passages");
  check(indices.size(0) == mazes.batch, "indices must have ", mazes.batch, " entries, got ", indices.size(0));
  check(min_path >= 1 && max_path >= min_path, "min_path must be in [1, max_path], got ", min_path, ", ", max_path);
  const auto column = [&] { return empty(passages, ScalarType::Long, mazes.batch); };
  const Tensor start = column(), goal = column(), longest = column();
  const FindEndpoints job{mazes,    data<int64_t>(indices), static_cast<uint64_t>(seed), min_path,
                          max_path, data<int64_t>(start),   data<int64_t>(goal),         data<int64_t>(longest)};
  launch_mazes(passages, job, mazes.batch, FindEndpoints::bytes(mazes.grid.cells()));
  return {start, goal, longest};
}

template <class T>
struct Walk {
  Mazes mazes;
  const T* logits;
  bool moves;
  const int64_t *start, *goal;
  int64_t max_steps;
  bool* reached;
  int64_t *path, *steps;

  __device__ void operator()(int64_t b, Scratch s) const {
    const int32_t n = mazes.grid.cells(), columns = moves ? 4 : n;
    const MazeView maze = mazes.view(b, s.take<uint8_t>(n));
    const T* const table = logits + b * n * columns;
    const bool by_move = moves;
    const auto score = [=](int32_t cell, int direction, int32_t to) {
      return static_cast<Accumulate<T>>(table[static_cast<int64_t>(cell) * columns + (by_move ? direction : to)]);
    };
    int64_t* const row = path + b * (max_steps + 1);
    const int64_t made = maze_walk(maze, score, checked_cell(start, b, n), checked_cell(goal, b, n), max_steps,
                                   s.take<uint8_t>(n), row);
    steps[b] = made;
    reached[b] = row[made] == goal[b];
  }
};

std::tuple<Tensor, Tensor, Tensor> greedy_rollout(const Tensor& logits_in, const Tensor& passages,
                                                  const Tensor& start, const Tensor& goal, int64_t max_steps,
                                                  bool moves) {
  const Mazes mazes(passages);
  const int64_t n = mazes.grid.cells();
  const int64_t *from = mazes.cells("start", start, passages), *to = mazes.cells("goal", goal, passages);
  const Tensor logits = packed(logits_in, passages, "logits");
  check(logits.dim() == 3 && logits.size(0) == mazes.batch && logits.size(1) == n &&
            logits.size(2) == (moves ? 4 : n),
        "logits must be [", mazes.batch, ", ", n, ", ", moves ? 4 : n, "]");
  check(max_steps >= 0, "max_steps must be at least 0, got ", max_steps);
  const Tensor reached = empty(passages, ScalarType::Bool, mazes.batch);
  const Tensor path = empty(passages, ScalarType::Long, mazes.batch, max_steps + 1);
  const Tensor steps = empty(passages, ScalarType::Long, mazes.batch);
  dispatch(logits.scalar_type(), "logits", [&](auto zero) {
    using T = decltype(zero);
    const Walk<T> job{mazes,           data<T>(logits),     moves,
                      from,            to,                  max_steps,
                      data<bool>(reached), data<int64_t>(path), data<int64_t>(steps)};
    launch_mazes(passages, job, mazes.batch, 2 * Scratch::bytes<uint8_t>(n));
  });
  return {reached, path, steps};
}

}  // namespace

}  // namespace poh::cuda

POH_CUDA_LIBRARY(m) {
  m.impl("maze_neighbors", TORCH_BOX(&poh::cuda::maze_neighbors));
  m.impl("maze_valid_mask", TORCH_BOX(&poh::cuda::maze_valid_mask));
  m.impl("maze_distances", TORCH_BOX(&poh::cuda::maze_distances));
  m.impl("maze_shortest_paths", TORCH_BOX(&poh::cuda::maze_shortest_paths));
  m.impl("maze_endpoints", TORCH_BOX(&poh::cuda::maze_endpoints));
  m.impl("greedy_rollout", TORCH_BOX(&poh::cuda::greedy_rollout));
}
