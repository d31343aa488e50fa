// Greedy rollout: threads over mazes; reads only the scores of the cells that are walked.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/checks.h"
#include "maze/cpu_batch.h"
#include "common/cpu_tensors.h"
#include "common/parallel.h"
#include "maze/rollout.h"

namespace poh {
namespace {

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

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) { m.impl("greedy_rollout", TORCH_BOX(&poh::greedy_rollout)); }
