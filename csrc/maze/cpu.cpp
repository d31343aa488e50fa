// Mazes on the CPU, threads over mazes: their generation, their neighbours, masks, distances, shortest paths and endpoints,
// and greedy rollouts, which read only the scores of the cells that are walked.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <string>

#include "common/checks.h"
#include "common/cpu.h"
#include "maze/cpu_batch.h"
#include "maze/generate.h"
#include "maze/graph.h"

namespace poh {

namespace {

using Generator = void (*)(const GridTables&, uint64_t, uint64_t, const MazeScratch&, uint8_t*);

Generator generator(const std::string& algorithm) {
  if (algorithm == "dfs") return maze_dfs;
  if (algorithm == "wilson") return maze_wilson;
  if (algorithm == "prim") return maze_prim;
  if (algorithm == "kruskal") return maze_kruskal;
  check(algorithm == "percolation", "algorithm '", algorithm, "' is unknown");
  return maze_percolation;
}

Tensor generate_mazes(const Tensor& indices, int64_t seed, int64_t height, int64_t width, std::string algorithm) {
  check_tensor(indices, "indices", ScalarType::Long, 1);
  const Grid grid = checked_grid(height, width);
  const Generator make = generator(algorithm);
  const int64_t batch = indices.size(0), n = grid.cells();
  Tensor passages = new_empty({batch, height, width}, ScalarType::Byte);
  const int64_t* index = indices.const_data_ptr<int64_t>();
  uint8_t* out = passages.mutable_data_ptr<uint8_t>();
  const GridTableStore tables(grid);
  parallel(batch, std::max<int64_t>(1, 2048 / n), [&](int64_t begin, int64_t end) {
    MazeScratchStore scratch(grid);
    for (int64_t b = begin; b < end; ++b) {
      make(tables.get(), static_cast<uint64_t>(seed), static_cast<uint64_t>(index[b]), scratch.get(), out + b * n);
    }
  });
  return passages;
}

Tensor maze_neighbors(const Tensor& passages) {
  const MazeBatch mazes(passages);
  const int64_t batch = mazes.batch, n = mazes.n;
  Tensor around = in_huge_pages(new_empty({batch, n, 4}, ScalarType::Long));
  int64_t* out = around.mutable_data_ptr<int64_t>();
  // -1 | x = -1 and 0 | x = x: a wall costs no branch.
  int64_t wall[16][4], step[4];
  for (int d = 0; d < 4; ++d) {
    step[d] = mazes.grid.step(d);
    for (int bits = 0; bits < 16; ++bits) wall[bits][d] = bits >> d & 1 ? 0 : -1;
  }
  parallel(batch, std::max<int64_t>(1, 8192 / n), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const uint8_t* open = mazes.passages + b * n;
      int64_t* row = out + 4 * b * n;
      for (int64_t c = 0; c < n; ++c) {
        const int64_t* closed = wall[open[c] & mazes.inside[c]];
        for (int d = 0; d < 4; ++d) row[4 * c + d] = (c + step[d]) | closed[d];
      }
    }
  });
  return around;
}

Tensor maze_valid_mask(const Tensor& passages) {
  const MazeBatch mazes(passages);
  const int64_t batch = mazes.batch, n = mazes.n;
  Tensor mask = in_huge_pages(new_empty({batch, n, n}, ScalarType::Bool));
  uint8_t* out = reinterpret_cast<uint8_t*>(mask.mutable_data_ptr<bool>());
  parallel(batch, std::max<int64_t>(1, 65536 / (n * n)), [&](int64_t begin, int64_t end) {
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
  return mask;
}

Tensor maze_distances(const Tensor& passages, const Tensor& goal) {
  const MazeBatch mazes(passages);
  const int64_t batch = mazes.batch, n = mazes.n;
  const int64_t* to = mazes.cells("goal", goal);
  Tensor distances = new_empty({batch, n}, ScalarType::Int);
  int32_t* out = distances.mutable_data_ptr<int32_t>();
  parallel(batch, mazes.grain(), [&](int64_t begin, int64_t end) {
    std::vector<int32_t> queue(n);
    std::vector<uint8_t> open(n);
    for (int64_t b = begin; b < end; ++b) {
      maze_search(mazes.view(b, open.data()), static_cast<int32_t>(to[b]), -1, out + b * n, queue.data());
    }
  });
  return distances;
}

std::tuple<Tensor, Tensor> maze_shortest_paths(const Tensor& passages, const Tensor& start, const Tensor& goal,
                                               int64_t length) {
  const MazeBatch mazes(passages);
  const int64_t batch = mazes.batch, n = mazes.n;
  const int64_t *from = mazes.cells("start", start), *to = mazes.cells("goal", goal);
  check(length >= 1, "length must be >= 1, got ", length);
  Tensor paths = in_huge_pages(new_empty({batch, length}, ScalarType::Long));
  Tensor cells = new_empty({batch}, ScalarType::Long);
  int64_t *path = paths.mutable_data_ptr<int64_t>(), *count = cells.mutable_data_ptr<int64_t>();
  parallel(batch, mazes.grain(), [&](int64_t begin, int64_t end) {
    std::vector<int32_t> distance(n), queue(n);
    std::vector<uint8_t> open(n);
    for (int64_t b = begin; b < end; ++b) {
      const MazeView maze = mazes.view(b, open.data());
      const int32_t first = static_cast<int32_t>(from[b]);
      maze_search(maze, static_cast<int32_t>(to[b]), first, distance.data(), queue.data());
      count[b] = maze_descend(maze, distance.data(), first, length, path + b * length);
    }
  });
  return {paths, cells};
}

std::tuple<Tensor, Tensor, Tensor> maze_endpoints(const Tensor& passages, const Tensor& indices, int64_t seed,
                                                  int64_t min_path, int64_t max_path) {
  const MazeBatch mazes(passages);
  const int64_t batch = mazes.batch, n = mazes.n;
  check_tensor(indices, "indices", ScalarType::Long, 1);
  check(indices.size(0) == batch, "indices must have ", batch, " entries, got ", indices.size(0));
  check(min_path >= 1 && max_path >= min_path, "min_path must be in [1, max_path], got ", min_path, ", ", max_path);
  const int64_t* index = indices.const_data_ptr<int64_t>();
  Tensor starts = new_empty({batch}, ScalarType::Long);
  Tensor goals = new_empty({batch}, ScalarType::Long);
  Tensor longest = new_empty({batch}, ScalarType::Long);
  int64_t *start = starts.mutable_data_ptr<int64_t>(), *goal = goals.mutable_data_ptr<int64_t>();
  int64_t* seen = longest.mutable_data_ptr<int64_t>();
  parallel(batch, mazes.grain(), [&](int64_t begin, int64_t end) {
    std::vector<int32_t> room(5 * n);
    std::vector<uint8_t> open(n);
    int32_t* at = room.data();
    const EndpointScratch scratch{at, at + n, at + 2 * n, at + 3 * n, at + 4 * n};
    for (int64_t b = begin; b < end; ++b) {
      const Endpoints found = find_endpoints(mazes.view(b, open.data()), static_cast<uint64_t>(seed),
                                             static_cast<uint64_t>(index[b]), min_path, max_path, scratch);
      start[b] = found.start;
      goal[b] = found.goal;
      seen[b] = found.longest;
    }
  });
  return {starts, goals, longest};
}

template <class T>
void walk_all(const MazeBatch& mazes, const T* logits, bool moves, const int64_t* start, const int64_t* goal,
              int64_t max_steps, bool* reached, int64_t* path, int64_t* steps) {
  using Value = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const int64_t n = mazes.n, columns = moves ? 4 : n;
  parallel(mazes.batch, mazes.grain(), [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> open(n), visited(n);
    for (int64_t b = begin; b < end; ++b) {
      const T* table = logits + b * n * columns;
      const auto score = [&](int32_t cell, int direction, int32_t to) {
        return static_cast<Value>(table[cell * columns + (moves ? direction : to)]);
      };
      int64_t* row = path + b * (max_steps + 1);
      steps[b] = maze_walk(mazes.view(b, open.data()), score, static_cast<int32_t>(start[b]),
                           static_cast<int32_t>(goal[b]), max_steps, visited.data(), row);
      reached[b] = row[steps[b]] == goal[b];
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> greedy_rollout(const Tensor& logits, const Tensor& passages, const Tensor& start,
                                                  const Tensor& goal, int64_t max_steps, bool moves) {
  const MazeBatch mazes(passages);
  const int64_t *from = mazes.cells("start", start), *to = mazes.cells("goal", goal);
  check(logits.is_cpu() && logits.is_contiguous(), "logits must be contiguous, on the CPU");
  check(logits.dim() == 3 && logits.size(0) == mazes.batch && logits.size(1) == mazes.n &&
            logits.size(2) == (moves ? 4 : mazes.n),
        "logits must be [", mazes.batch, ", ", mazes.n, ", ", moves ? 4 : mazes.n, "]");
  check(max_steps >= 0, "max_steps must be at least 0, got ", max_steps);
  Tensor reached = new_empty({mazes.batch}, ScalarType::Bool);
  Tensor path = new_empty({mazes.batch, max_steps + 1}, ScalarType::Long);
  Tensor steps = new_empty({mazes.batch}, ScalarType::Long);
  dispatch(logits.scalar_type(), "logits", [&](auto zero) {
    walk_all(mazes, data<decltype(zero)>(logits), moves, from, to, max_steps, data<bool>(reached),
             data<int64_t>(path), data<int64_t>(steps));
  });
  return {reached, path, steps};
}

}  // namespace

}  // namespace poh

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) {
  m.impl("generate_mazes", TORCH_BOX(&poh::generate_mazes));
  m.impl("maze_neighbors", TORCH_BOX(&poh::maze_neighbors));
  m.impl("maze_valid_mask", TORCH_BOX(&poh::maze_valid_mask));
  m.impl("maze_distances", TORCH_BOX(&poh::maze_distances));
  m.impl("maze_shortest_paths", TORCH_BOX(&poh::maze_shortest_paths));
  m.impl("maze_endpoints", TORCH_BOX(&poh::maze_endpoints));
  m.impl("greedy_rollout", TORCH_BOX(&poh::greedy_rollout));
}
