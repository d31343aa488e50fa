// Mazes on the CPU, threads over mazes. Of a rollout, only the scores of the cells that are walked are read.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "maze/cpu_batch.h"

namespace poh {
namespace {

struct CpuMazeOps : Cpu {
  static void generate(const Tensor&, MazeAlgorithm algorithm, Grid grid, uint64_t seed, Share share,
                       const int64_t* index, int64_t batch, uint8_t* out) {
    const int64_t n = grid.cells();
    const GridTableStore tables(grid);
    parallel(batch, std::max<int64_t>(1, 2048 / n), [&](int64_t begin, int64_t end) {
      MazeScratchStore scratch(grid);
      for (int64_t b = begin; b < end; ++b) {
        make_maze(algorithm, tables.get(), seed, static_cast<uint64_t>(index[b]), share, scratch.get(), out + b * n);
      }
    });
  }

  static void neighbors(const Tensor&, const MazeBatch& batch, int64_t* out) {
    const CpuMazes mazes(batch);
    const int64_t n = mazes.n;
    // -1 | x = -1 and 0 | x = x: a wall costs no branch.
    int64_t wall[16][4], step[4];
    for (int d = 0; d < 4; ++d) {
      step[d] = mazes.grid.step(d);
      for (int bits = 0; bits < 16; ++bits) wall[bits][d] = bits >> d & 1 ? 0 : -1;
    }
    mazes.each(8192 / n, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const uint8_t* open = mazes.passages + b * n;
        int64_t* row = out + 4 * b * n;
        for (int64_t c = 0; c < n; ++c) {
          const int64_t* closed = wall[open[c] & mazes.inside[c]];
          for (int d = 0; d < 4; ++d) row[4 * c + d] = (c + step[d]) | closed[d];
        }
      }
    });
  }

  static void valid_mask(const Tensor&, const MazeBatch& batch, uint8_t* out) {
    const CpuMazes mazes(batch);
    const int64_t n = mazes.n;
    mazes.each(65536 / (n * n), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const uint8_t* open = mazes.passages + b * n;
        std::memset(out + b * n * n, 0, static_cast<size_t>(n * n));
        for (int64_t c = 0; c < n; ++c) {
          for (uint32_t bits = open[c] & mazes.inside[c]; bits != 0; bits &= bits - 1) {
            out[(b * n + c) * n + c + mazes.grid.step(lowest_bit(bits))] = 1;
          }
        }
      }
    });
  }

  static void distances(const Tensor&, const MazeBatch& batch, Goals goal, int32_t* out) {
    const CpuMazes mazes(batch);
    const int64_t n = mazes.n;
    mazes.each(2048 / n, [&](int64_t begin, int64_t end) {
      std::vector<int32_t> queue(n);
      std::vector<uint8_t> open(n);
      for (int64_t b = begin; b < end; ++b) {
        maze_search(mazes.view(b, open.data()), {goal.cells + b * goal.count, goal.count}, -1, out + b * n,
                    queue.data());
      }
    });
  }

  static void shortest_paths(const Tensor&, const MazeBatch& batch, const int64_t* start, Goals goal,
                             int64_t length, int64_t* path, int64_t* count) {
    const CpuMazes mazes(batch);
    const int64_t n = mazes.n;
    mazes.each(2048 / n, [&](int64_t begin, int64_t end) {
      std::vector<int32_t> distance(n), queue(n);
      std::vector<uint8_t> open(n);
      for (int64_t b = begin; b < end; ++b) {
        const MazeView maze = mazes.view(b, open.data());
        const int32_t first = static_cast<int32_t>(start[b]);
        maze_search(maze, {goal.cells + b * goal.count, goal.count}, first, distance.data(), queue.data());
        count[b] = maze_descend(maze, distance.data(), first, length, path + b * length);
      }
    });
  }

  static void endpoints(const Tensor&, const MazeBatch& batch, const int64_t* index, uint64_t seed, int64_t min_path,
                        int64_t max_path, const uint8_t* allowed, int64_t* start, int64_t* goal, int64_t* longest) {
    const CpuMazes mazes(batch);
    const int64_t n = mazes.n;
    mazes.each(2048 / n, [&](int64_t begin, int64_t end) {
      std::vector<int32_t> room(5 * n);
      std::vector<uint8_t> open(n);
      int32_t* at = room.data();
      const EndpointScratch scratch{at, at + n, at + 2 * n, at + 3 * n, at + 4 * n};
      for (int64_t b = begin; b < end; ++b) {
        const Endpoints found = find_endpoints(mazes.view(b, open.data()), seed, static_cast<uint64_t>(index[b]),
                                               min_path, max_path, allowed ? allowed + b * n : nullptr, scratch);
        start[b] = found.start;
        goal[b] = found.goal;
        longest[b] = found.longest;
      }
    });
  }

  template <class T>
  static void rollout(const Tensor&, const MazeBatch& batch, const T* logits, bool moves, const int64_t* start,
                      Goals goal, int64_t max_steps, bool* reached, int64_t* path, int64_t* steps) {
    const CpuMazes mazes(batch);
    const int64_t n = mazes.n, columns = moves ? 4 : n;
    mazes.each(2048 / n, [&](int64_t begin, int64_t end) {
      std::vector<uint8_t> open(n), marks(n);
      for (int64_t b = begin; b < end; ++b) {
        const T* table = logits + b * n * columns;
        const auto score = [&](int32_t cell, int direction, int32_t to) {
          return static_cast<Accumulate<T>>(table[cell * columns + (moves ? direction : to)]);
        };
        int64_t* row = path + b * (max_steps + 1);
        const Walked walked = maze_walk(mazes.view(b, open.data()), score, static_cast<int32_t>(start[b]),
                                        {goal.cells + b * goal.count, goal.count}, max_steps, marks.data(), row);
        steps[b] = walked.steps;
        reached[b] = walked.reached;
      }
    });
  }
};

}  // namespace
}  // namespace poh

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) {
  using Ops = poh::MazeOps<poh::CpuMazeOps>;
  m.impl("generate_mazes", TORCH_BOX(&Ops::generate));
  m.impl("maze_neighbors", TORCH_BOX(&Ops::neighbors));
  m.impl("maze_valid_mask", TORCH_BOX(&Ops::valid_mask));
  m.impl("maze_distances", TORCH_BOX(&Ops::distances));
  m.impl("maze_shortest_paths", TORCH_BOX(&Ops::shortest_paths));
  m.impl("maze_endpoints", TORCH_BOX(&Ops::endpoints));
  m.impl("greedy_rollout", TORCH_BOX(&Ops::rollout));
}
