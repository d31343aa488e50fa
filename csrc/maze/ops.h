// The ops on mazes for both devices: here the arguments are checked and the results made, once.
#pragma once

#include <string>
#include <tuple>

#include "common/tensors.h"
#include "maze/generate.h"
#include "maze/graph.h"

namespace poh {

// Cells are int32 and are packed with four bits beside them.
constexpr int64_t kMaxCells = int64_t{1} << 26;

inline Grid checked_grid(int64_t height, int64_t width) {
  check(height >= 1 && width >= 1, "size must be at least 1, got (", height, ", ", width, ")");
  check(height <= kMaxCells / width, "size must be at most ", kMaxCells, " cells, got (", height, ", ", width, ")");
  return {static_cast<int32_t>(height), static_cast<int32_t>(width)};
}

// The handle is taken, not a std::string: torch's conversion to one (as of 2.13) never frees a string that it makes.
inline MazeAlgorithm to_algorithm(StringHandle handle) {
  const char* text = nullptr;
  size_t length = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &text));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  const std::string name(text, length);
  STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  if (name == "dfs") return kDfs;
  if (name == "wilson") return kWilson;
  if (name == "prim") return kPrim;
  if (name == "kruskal") return kKruskal;
  if (name == "percolation") return kPercolation;
  check(name == "obstacles", "algorithm '", name, "' is unknown");
  return kObstacles;
}

// A batch of mazes. The bits of the passages are the caller's: those that would lead out of the grid do not count.
struct MazeBatch {
  Grid grid;
  int64_t batch, n, stride;  // stride: from maze to maze, 0 where all are one
  const uint8_t* passages;

  explicit MazeBatch(const Tensor& t) : passages(data<const uint8_t>(t)) {
    checked(t, "passages", ScalarType::Byte, 3, t);
    grid = checked_grid(t.size(1), t.size(2));
    batch = t.size(0), n = stride = grid.cells();
  }

  // For tasks, one a maze or, where there is one maze, all on it. `cells` has one row for each.
  MazeBatch(const Tensor& t, const Tensor& cells) : MazeBatch(t) {
    if (batch == 1 && cells.dim() > 0) batch = cells.size(0), stride = 0;
  }

  // t, contiguous and on the device of `like`.
  static const Tensor& checked(const Tensor& t, const char* name, ScalarType dtype, int64_t dim, const Tensor& like) {
    check_form(t, name, dtype, dim);
    check(t.is_contiguous(), name, " must be contiguous");
    check(t.device() == like.device(), name, " must be on the device of passages");
    return t;
  }
};

// Device: Cpu or Cuda, with a function for each op, which is given a tensor of the device, the checked arguments, and
// where to write its results.
template <class Device>
struct MazeOps {
  static Tensor generate(const Tensor& indices, int64_t seed, int64_t height, int64_t width, StringHandle algorithm,
                         int64_t low, int64_t high) {
    const MazeAlgorithm which = to_algorithm(algorithm);  // first: it frees the string
    MazeBatch::checked(indices, "indices", ScalarType::Long, 1, indices);
    const Grid grid = checked_grid(height, width);
    check(0 <= low && low <= high && high <= int64_t{1} << 32, "a share must be in [0, 2^32], got ", low, ", ", high);
    const Tensor out = empty(indices, ScalarType::Byte, indices.size(0), height, width);
    if (out.numel() > 0) {
      Device::generate(indices, which, grid, static_cast<uint64_t>(seed), Share{low, high},
                       data<const int64_t>(indices), indices.size(0), data<uint8_t>(out));
    }
    return out;
  }

  static Tensor neighbors(const Tensor& passages) {
    const MazeBatch mazes(passages);
    const Tensor out = in_huge_pages(empty(passages, ScalarType::Long, mazes.batch, mazes.n, 4));
    if (mazes.batch > 0) Device::neighbors(passages, mazes, data<int64_t>(out));
    return out;
  }

  static Tensor valid_mask(const Tensor& passages) {
    const MazeBatch mazes(passages);
    const Tensor out = in_huge_pages(empty(passages, ScalarType::Bool, mazes.batch, mazes.n, mazes.n));
    if (mazes.batch > 0) Device::valid_mask(passages, mazes, data<uint8_t>(out));
    return out;
  }

  static Tensor distances(const Tensor& passages, const Tensor& goal) {
    const MazeBatch mazes(passages, goal);
    const Goals to = goals(goal, mazes, passages);
    const Tensor out = empty(passages, ScalarType::Int, mazes.batch, mazes.n);
    Device::distances(passages, mazes, to, data<int32_t>(out));
    return out;
  }

  static std::tuple<Tensor, Tensor> shortest_paths(const Tensor& passages, const Tensor& start, const Tensor& goal,
                                                   int64_t length) {
    const MazeBatch mazes(passages, start);
    const int64_t* const from = cells("start", start, mazes, passages);
    const Goals to = goals(goal, mazes, passages);
    check(length >= 1, "length must be >= 1, got ", length);
    const Tensor path = in_huge_pages(empty(passages, ScalarType::Long, mazes.batch, length));
    const Tensor count = empty(passages, ScalarType::Long, mazes.batch);
    Device::shortest_paths(passages, mazes, from, to, length, data<int64_t>(path), data<int64_t>(count));
    return {path, count};
  }

  static std::tuple<Tensor, Tensor, Tensor> endpoints(const Tensor& passages, const Tensor& indices, int64_t seed,
                                                      int64_t min_path, int64_t max_path,
                                                      optional<Tensor> allowed) {
    const MazeBatch mazes(passages);
    if (allowed) {
      MazeBatch::checked(*allowed, "allowed", ScalarType::Bool, 2, passages);
      check(allowed->size(0) == mazes.batch && allowed->size(1) == mazes.n, "allowed must be [", mazes.batch, ", ",
            mazes.n, "]");
    }
    MazeBatch::checked(indices, "indices", ScalarType::Long, 1, passages);
    check(indices.size(0) == mazes.batch, "indices must have ", mazes.batch, " entries, got ", indices.size(0));
    check(min_path >= 1 && max_path >= min_path, "min_path must be in [1, max_path], got ", min_path, ", ", max_path);
    const auto column = [&] { return empty(passages, ScalarType::Long, mazes.batch); };
    const Tensor start = column(), goal = column(), longest = column();
    Device::endpoints(passages, mazes, data<const int64_t>(indices), static_cast<uint64_t>(seed), min_path, max_path,
                      data<const uint8_t>(allowed), data<int64_t>(start), data<int64_t>(goal), data<int64_t>(longest));
    return {start, goal, longest};
  }

  static std::tuple<Tensor, Tensor, Tensor> rollout(const Tensor& logits, const Tensor& passages, const Tensor& start,
                                                    const Tensor& goal, int64_t max_steps, bool moves) {
    const MazeBatch mazes(passages, start);
    const int64_t* const from = cells("start", start, mazes, passages);
    const Goals to = goals(goal, mazes, passages);
    const int64_t columns = moves ? 4 : mazes.n;
    check(logits.is_contiguous(), "logits must be contiguous");
    check(logits.device() == passages.device(), "logits must be on the device of passages");
    check(logits.dim() == 3 && logits.size(0) == mazes.batch && logits.size(1) == mazes.n && logits.size(2) == columns,
          "logits must be [", mazes.batch, ", ", mazes.n, ", ", columns, "]");
    check(max_steps >= 0, "max_steps must be at least 0, got ", max_steps);
    const Tensor reached = empty(passages, ScalarType::Bool, mazes.batch);
    const Tensor path = empty(passages, ScalarType::Long, mazes.batch, max_steps + 1);
    const Tensor steps = empty(passages, ScalarType::Long, mazes.batch);
    dispatch(logits.scalar_type(), "logits", [&](auto zero) {
      using T = decltype(zero);
      Device::template rollout<T>(passages, mazes, data<const T>(logits), moves, from, to, max_steps,
                                  data<bool>(reached), data<int64_t>(path), data<int64_t>(steps));
    });
    return {reached, path, steps};
  }

 private:
  // One cell for each maze, all in range.
  static const int64_t* cells(const char* name, const Tensor& t, const MazeBatch& mazes, const Tensor& passages) {
    MazeBatch::checked(t, name, ScalarType::Long, 1, passages);
    const int64_t batch = mazes.batch;
    check(t.size(0) == batch, name, " must be [", batch, "], one cell for each maze, got [", t.size(0), "]");
    if (Device::checks_indices()) {
      if (const auto bad = Device::first_outside(t, 0, mazes.n, 0)) cell_error(name, *bad, 0, mazes.n);
    }
    return data<const int64_t>(t);
  }

  // One goal for each maze, or several, padded with -1: as many as columns, and those of the first maze.
  static Goals goals(const Tensor& t, const MazeBatch& mazes, const Tensor& passages) {
    if (t.dim() != 2) return {cells("goal", t, mazes, passages), 1};
    MazeBatch::checked(t, "goal", ScalarType::Long, 2, passages);
    const int64_t batch = mazes.batch, columns = t.size(1);
    check(t.size(0) == batch, "goal must be [", batch, ", G], a row for each maze, got [", t.size(0), ", ", columns,
          "]");
    if (Device::checks_indices()) {
      if (const auto bad = Device::first_outside(t, 0, mazes.n, -1)) cell_error("goal", *bad, columns, mazes.n);
    }
    return {data<const int64_t>(t), columns};
  }
};

}  // namespace poh
