// Greedy rollout: a thread per maze walks it; only the scores of the cells that are walked are read.
#include <tuple>

#include "maze/cuda_threads.h"
#include "maze/rollout.h"

namespace poh::cuda {
namespace {

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

POH_CUDA_LIBRARY(m) { m.impl("greedy_rollout", TORCH_BOX(&poh::cuda::greedy_rollout)); }
