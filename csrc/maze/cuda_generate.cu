// Maze generation: a thread per maze runs the generators of maze/generate.h, so every bit is that of the CPU.
#include "maze/cuda_threads.h"

namespace poh::cuda {
namespace {

// What an algorithm needs of MazeScratch, in elements (words: the draws it takes; flags: for dfs and prim with the
// spare bytes of Unvisited).
struct Room {
  int64_t words, list, stack, flags;

  Room(MazeAlgorithm algorithm, Grid grid, Share share) {
    const int64_t n = grid.cells(), walls = grid.walls(), spared = n + 2 * int64_t{grid.width} + 2;
    switch (algorithm) {
      case kDfs: words = n, list = n, stack = 0, flags = spared; break;
      case kWilson: words = n, list = n, stack = n, flags = n; break;
      case kPrim: words = walls + 1, list = walls + 4, stack = 0, flags = spared; break;
      case kKruskal: words = walls, list = walls, stack = (n + 1) / 2, flags = 0; break;
      case kPercolation: words = share.half() ? (walls + 31) / 32 : walls + 1, list = stack = flags = 0; break;
      case kObstacles: words = n + 1, list = stack = flags = 0; break;
    }
    if (algorithm < kPercolation && share.high > 0) words = std::max(words, walls + 1);
    words = (words + 3) / 4 * 4;  // whole Philox blocks
  }
  int64_t bytes(Grid grid) const {
    return Scratch::bytes<uint32_t>(words) + Scratch::bytes<int32_t>(list) + Scratch::bytes<uint64_t>(stack) +
           Scratch::bytes<uint8_t>(flags) + Scratch::bytes<uint8_t>(grid.cells());
  }
};

// The tables of a grid, in one tensor: next, wall, step, inside, pick.
struct TableStore {
  int32_t *next, *wall, *step;
  uint8_t *inside, *pick;

  static int64_t ints(Grid grid) { return 4 * int64_t{grid.cells()} + grid.walls() + 4; }
  TableStore(Grid grid, int32_t* memory)
      : next(memory), wall(next + 4 * int64_t{grid.cells()}), step(wall + grid.walls()),
        inside(reinterpret_cast<uint8_t*>(step + 4)), pick(inside + grid.cells()) {}
};

__global__ void fill_tables(Grid grid, TableStore t) {
  const int32_t n = grid.cells(), w = grid.width, below = n - w;
  const int32_t threads = static_cast<int32_t>(gridDim.x * blockDim.x);
  const int32_t thread = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  for (int32_t c = thread; c < n; c += threads) {
    const int32_t row = c / w, column = c % w;
    const uint8_t inside = grid.inside(row, column);
    t.inside[c] = inside;
    for (int d = 0; d < 4; ++d) t.next[4 * int64_t{c} + d] = c + (inside >> d & 1 ? grid.step(d) : 0);
    // Walls below cells come first, in order of cells; then those to the right, one fewer in a row than cells.
    if (inside & 2) t.wall[c] = 4 * c + 1;
    if (inside & 8) t.wall[below + row * (w - 1) + column] = 4 * c + 3;
  }
  if (thread < 4) t.step[thread] = grid.step(thread);
  if (thread < 16) {
    for (int d = 0, k = 0; d < 4; ++d) {
      if (thread >> d & 1) t.pick[4 * thread + k++] = static_cast<uint8_t>(d);
    }
  }
}

template <MazeAlgorithm algorithm>
struct Generate {
  GridTables tables;
  Room room;
  uint64_t seed;
  Share share;
  const int64_t* indices;
  uint8_t* passages;

  __device__ void operator()(int64_t b, Scratch scratch) const {
    const MazeScratch s{scratch.take<uint32_t>(room.words), scratch.take<int32_t>(room.list),
                        scratch.take<uint64_t>(room.stack), scratch.take<uint8_t>(room.flags)};
    const int32_t n = tables.grid.cells();
    uint8_t* const maze = scratch.take<uint8_t>(n);
    const uint64_t index = static_cast<uint64_t>(indices[b]);
    make_maze(algorithm, tables, seed, index, share, s, maze);
    for (int32_t c = 0; c < n; ++c) passages[b * n + c] = maze[c];
  }
};

}  // namespace

void generate_mazes(const Tensor& on, MazeAlgorithm algorithm, Grid grid, uint64_t seed, Share share,
                    const int64_t* indices, int64_t batch, uint8_t* passages) {
  const int64_t bytes = TableStore::ints(grid) * 4 + grid.cells() + 64;
  const Tensor memory = empty(on, ScalarType::Int, (bytes + 3) / 4);
  const TableStore tables(grid, data<int32_t>(memory));
  launch(&fill_tables, on, Shape{blocks_for(on, grid.cells(), 256), 256}, grid, tables);
  const auto run = [&]<MazeAlgorithm which>() {
    const Room room(which, grid, share);
    const Generate<which> job{{grid, tables.inside, tables.next, tables.wall, tables.pick, tables.step},
                              room, seed, share, indices, passages};
    launch_mazes(on, job, batch, room.bytes(grid));
  };
  switch (algorithm) {
    case kDfs: run.template operator()<kDfs>(); break;
    case kWilson: run.template operator()<kWilson>(); break;
    case kPrim: run.template operator()<kPrim>(); break;
    case kKruskal: run.template operator()<kKruskal>(); break;
    case kPercolation: run.template operator()<kPercolation>(); break;
    case kObstacles: run.template operator()<kObstacles>(); break;
  }
}

}  // namespace poh::cuda
