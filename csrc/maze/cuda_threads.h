// One thread per maze: walks and searches are chains of dependent steps, so what fills a GPU is many mazes at once.
// Each thread works in scratch of its own, in shared memory while 32 mazes fit there, else in a global workspace.
#pragma once

#include "common/device.h"
#include "maze/ops.h"

namespace poh::cuda {

// Hands out scratch memory, aligned for the type asked for.
class Scratch {
 public:
  POH_HOST_DEVICE explicit Scratch(unsigned char* at) : at_(at) {}
  template <class T>
  POH_HOST_DEVICE T* take(int64_t count) {
    T* const taken = reinterpret_cast<T*>(at_ + used_);
    used_ += bytes<T>(count);
    return taken;
  }
  // Every piece takes a multiple of 8 bytes, so that the order of pieces does not matter.
  template <class T>
  POH_HOST_DEVICE static int64_t bytes(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + 7) / 8 * 8;
  }

 private:
  unsigned char* at_;
  int64_t used_ = 0;
};

constexpr int kMazeThreads = 32;

// job(b, scratch) for every maze b.
template <class Job>
__global__ void __launch_bounds__(kMazeThreads)
    each_maze(Job job, int64_t batch, int64_t stride, unsigned char* workspace) {
  POH_DYNAMIC_SHARED(unsigned char, shared);
  const int64_t thread = blockIdx.x * static_cast<int64_t>(kMazeThreads) + threadIdx.x;
  unsigned char* const own = workspace == nullptr ? shared + threadIdx.x * stride : workspace + thread * stride;
  const int64_t threads = gridDim.x * static_cast<int64_t>(kMazeThreads);
  for (int64_t b = thread; b < batch; b += threads) job(b, Scratch(own));
}

// scratch: bytes for one maze.
template <class Job>
void launch_mazes(const Tensor& on, const Job& job, int64_t batch, int64_t scratch) {
  if (batch == 0) return;
  // 8 bytes beside a multiple of 128: neighbouring threads then meet in different banks.
  const int64_t stride = (scratch + 127) / 128 * 128 + 8;
  constexpr int64_t kMostShared = 96 * 1024;  // two blocks on a multiprocessor of compute capability 9.0
  if (stride * kMazeThreads <= kMostShared) {
    const Shape shape{blocks_for(on, batch, kMazeThreads, 32), kMazeThreads,
                      static_cast<size_t>(stride * kMazeThreads)};
    launch(&each_maze<Job>, on, shape, job, batch, stride, static_cast<unsigned char*>(nullptr));
    return;
  }
  constexpr int64_t kMostWorkspace = int64_t{256} << 20;
  const int64_t most = std::max<int64_t>(1, kMostWorkspace / (stride * kMazeThreads));
  const int64_t blocks = std::min(most, blocks_for(on, batch, kMazeThreads, 8));
  const Tensor workspace = empty(on, ScalarType::Byte, blocks * kMazeThreads * stride);
  launch(&each_maze<Job>, on, Shape{blocks, kMazeThreads}, job, batch, stride, data<unsigned char>(workspace));
}

// Maze b, its passages copied to open[N] without those that would lead out of the grid.
POH_HOST_DEVICE MazeView view(const MazeBatch& mazes, int64_t b, uint8_t* open) {
  const Grid grid = mazes.grid;
  const uint8_t* const from = mazes.passages + b * mazes.stride;
  int32_t c = 0;
  for (int32_t row = 0; row < grid.height; ++row) {
    for (int32_t column = 0; column < grid.width; ++column, ++c) open[c] = from[c] & grid.inside(row, column);
  }
  return {grid, open};
}

// A start; the kernel stops where it is no cell.
__device__ inline int32_t checked_cell(const int64_t* cells, int64_t b, int32_t n) {
  POH_DEVICE_CHECK(cells[b] >= 0 && cells[b] < n, "a start is out of range for the cells of the maze");
  return static_cast<int32_t>(cells[b]);
}

__device__ inline Goals checked_goals(const Goals& goals, int64_t b, int32_t n) {
  const int64_t* const cells = goals.cells + b * goals.count;
  for (int64_t i = 0; i < goals.count; ++i) {
    POH_DEVICE_CHECK((cells[i] >= 0 || (goals.count > 1 && cells[i] == -1)) && cells[i] < n,
                     "a goal is out of range for the cells of the maze");
  }
  return {cells, goals.count};
}

}  // namespace poh::cuda
