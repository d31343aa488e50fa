// Neighbours and masks of mazes: a thread per 32 or 16 bytes written. Distances, paths, endpoints and greedy rollouts:
// a thread per maze runs what is in maze/graph.h; of a rollout only the scores of the cells that are walked are read.
#include "maze/cuda_threads.h"

namespace poh::cuda {

namespace {

constexpr int kThreads = 256;

__device__ int64_t global_thread() { return blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; }
__device__ int64_t global_threads() { return gridDim.x * static_cast<int64_t>(blockDim.x); }

__global__ void __launch_bounds__(kThreads) write_neighbors(MazeBatch mazes, int64_t* out) {
  const int32_t n = mazes.grid.cells(), w = mazes.grid.width;
  for (int64_t i = global_thread(); i < mazes.batch * n; i += global_threads()) {
    const int32_t c = static_cast<int32_t>(i % n);
    const uint32_t open = mazes.passages[i] & mazes.grid.inside(c / w, c % w);
    for (int d = 0; d < 4; ++d) out[4 * i + d] = open >> d & 1 ? c + mazes.grid.step(d) : -1;
  }
}

// Each thread writes 16 of the batch * n * n bytes at a time (fewer at the end), and each of them once.
__global__ void __launch_bounds__(kThreads) write_valid_mask(MazeBatch mazes, uint8_t* out) {
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
  MazeBatch mazes;
  Goals goal;
  int32_t* out;

  static int64_t bytes(int64_t n) { return 2 * Scratch::bytes<int32_t>(n) + Scratch::bytes<uint8_t>(n); }
  __device__ void operator()(int64_t b, Scratch s) const {
    const int32_t n = mazes.grid.cells();
    int32_t *distance = s.take<int32_t>(n), *queue = s.take<int32_t>(n);
    const MazeView maze = view(mazes, b, s.take<uint8_t>(n));
    maze_search(maze, checked_goals(goal, b, n), -1, distance, queue);
    for (int32_t c = 0; c < n; ++c) out[b * n + c] = distance[c];
  }
};

struct ShortestPaths {
  MazeBatch mazes;
  const int64_t* start;
  Goals goal;
  int64_t length;
  int64_t *path, *count;

  __device__ void operator()(int64_t b, Scratch s) const {
    const int32_t n = mazes.grid.cells(), first = checked_cell(start, b, n);
    int32_t *distance = s.take<int32_t>(n), *queue = s.take<int32_t>(n);
    const MazeView maze = view(mazes, b, s.take<uint8_t>(n));
    maze_search(maze, checked_goals(goal, b, n), first, distance, queue);
    count[b] = maze_descend(maze, distance, first, length, path + b * length);
  }
};

struct FindEndpoints {
  MazeBatch mazes;
  const int64_t* indices;
  uint64_t seed;
  int64_t min_path, max_path;
  const uint8_t* allowed;
  int64_t *start, *goal, *longest;

  static int64_t bytes(int64_t n) { return 5 * Scratch::bytes<int32_t>(n) + Scratch::bytes<uint8_t>(n); }
  __device__ void operator()(int64_t b, Scratch s) const {
    const int32_t n = mazes.grid.cells();
    const EndpointScratch room{s.take<int32_t>(n), s.take<int32_t>(n), s.take<int32_t>(n), s.take<int32_t>(n),
                               s.take<int32_t>(n)};
    const MazeView maze = view(mazes, b, s.take<uint8_t>(n));
    const uint64_t index = static_cast<uint64_t>(indices[b]);
    const Endpoints found = find_endpoints(maze, seed, index, min_path, max_path,
                                           allowed == nullptr ? nullptr : allowed + b * n, room);
    start[b] = found.start;
    goal[b] = found.goal;
    longest[b] = found.longest;
  }
};

template <class T>
struct Walk {
  MazeBatch mazes;
  const T* logits;
  bool moves;
  const int64_t* start;
  Goals goal;
  int64_t max_steps;
  bool* reached;
  int64_t *path, *steps;

  __device__ void operator()(int64_t b, Scratch s) const {
    const int32_t n = mazes.grid.cells(), columns = moves ? 4 : n;
    const MazeView maze = view(mazes, b, s.take<uint8_t>(n));
    const T* const table = logits + b * n * columns;
    const bool by_move = moves;
    const auto score = [=](int32_t cell, int direction, int32_t to) {
      return static_cast<Accumulate<T>>(table[static_cast<int64_t>(cell) * columns + (by_move ? direction : to)]);
    };
    int64_t* const row = path + b * (max_steps + 1);
    const Walked walked = maze_walk(maze, score, checked_cell(start, b, n), checked_goals(goal, b, n), max_steps,
                                    s.take<uint8_t>(n), row);
    steps[b] = walked.steps;
    reached[b] = walked.reached;
  }
};

}  // namespace

void generate_mazes(const Tensor& on, MazeAlgorithm algorithm, Grid grid, uint64_t seed, Share share,
                    const int64_t* indices, int64_t batch, uint8_t* passages);  // in cuda_generate.cu

namespace {

struct CudaMazeOps : Cuda {
  static constexpr auto generate = generate_mazes;

  static void neighbors(const Tensor& on, const MazeBatch& mazes, int64_t* out) {
    launch(&write_neighbors, on, Shape{blocks_for(on, mazes.batch * mazes.n, kThreads), kThreads}, mazes, out);
  }

  static void valid_mask(const Tensor& on, const MazeBatch& mazes, uint8_t* out) {
    const int64_t bytes = mazes.batch * mazes.n * mazes.n;
    launch(&write_valid_mask, on, Shape{blocks_for(on, bytes, kThreads * 16), kThreads}, mazes, out);
  }

  static void distances(const Tensor& on, const MazeBatch& mazes, Goals goal, int32_t* out) {
    launch_mazes(on, Distances{mazes, goal, out}, mazes.batch, Distances::bytes(mazes.n));
  }

  static void shortest_paths(const Tensor& on, const MazeBatch& mazes, const int64_t* start, Goals goal,
                             int64_t length, int64_t* path, int64_t* count) {
    const ShortestPaths job{mazes, start, goal, length, path, count};
    launch_mazes(on, job, mazes.batch, Distances::bytes(mazes.n));
  }

  static void endpoints(const Tensor& on, const MazeBatch& mazes, const int64_t* indices, uint64_t seed,
                        int64_t min_path, int64_t max_path, const uint8_t* allowed, int64_t* start, int64_t* goal,
                        int64_t* longest) {
    const FindEndpoints job{mazes, indices, seed, min_path, max_path, allowed, start, goal, longest};
    launch_mazes(on, job, mazes.batch, FindEndpoints::bytes(mazes.n));
  }

  template <class T>
  static void rollout(const Tensor& on, const MazeBatch& mazes, const T* logits, bool moves, const int64_t* start,
                      Goals goal, int64_t max_steps, bool* reached, int64_t* path, int64_t* steps) {
    const Walk<T> job{mazes, logits, moves, start, goal, max_steps, reached, path, steps};
    launch_mazes(on, job, mazes.batch, 2 * Scratch::bytes<uint8_t>(mazes.n));
  }
};

}  // namespace
}  // namespace poh::cuda

POH_CUDA_LIBRARY(m) {
  using Ops = poh::MazeOps<poh::cuda::CudaMazeOps>;
  m.impl("generate_mazes", TORCH_BOX(&Ops::generate));
  m.impl("maze_neighbors", TORCH_BOX(&Ops::neighbors));
  m.impl("maze_valid_mask", TORCH_BOX(&Ops::valid_mask));
  m.impl("maze_distances", TORCH_BOX(&Ops::distances));
  m.impl("maze_shortest_paths", TORCH_BOX(&Ops::shortest_paths));
  m.impl("maze_endpoints", TORCH_BOX(&Ops::endpoints));
  m.impl("greedy_rollout", TORCH_BOX(&Ops::rollout));
}
