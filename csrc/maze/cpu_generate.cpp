// Maze generation: threads over mazes.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "common/checks.h"
#include "maze/cpu_tables.h"
#include "common/cpu_tensors.h"
#include "common/parallel.h"
#include "maze/generate.h"

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

}  // namespace
}  // namespace poh

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) { m.impl("generate_mazes", TORCH_BOX(&poh::generate_mazes)); }
