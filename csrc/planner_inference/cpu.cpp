// Many passes of post-norm transformer blocks whose heads are all neighbour attention, without a graph: the mirror of
// poh_ext/models/blocks.py, whose weights poh_ext/ops/planner_inference.py hands over. Each thread takes whole mazes
// through all passes, so that a maze stays in its cache, and every product is followed by what is done with its rows
// while they are there. Threads that no maze is left for help with its tiles.
//
// With a tolerance, a cell that moved by no more keeps its state, and cells that would only repeat themselves are not
// computed (PassFront).
#include <torch/csrc/stable/library.h>

#include "planner_inference/cpu_maze.h"

namespace poh {
namespace {

using A = float;

// How many mazes are taken through all passes by a thread each. The rest, fewer than threads, are taken one after the
// other by all threads together, where that is faster: if they have the cells, and fewer mazes wait than threads help.
int64_t mazes_alone(const PassCall& call) {
  const int64_t threads = torch::stable::get_num_threads(), rest = call.shape.B % threads;
  const int64_t pairs = call.shape.N / (2 * PassMaze::kTileRows);
  const int64_t help = std::min(threads, call.settles() ? std::min<int64_t>(pairs, 4) : pairs);
  return rest < help ? call.shape.B - rest : call.shape.B;
}

std::tuple<Tensor, Tensor, Tensor> neighbor_passes(
    const Tensor& x_in, const Tensor& tokens_in, const Tensor& candidates, const Tensor& weights_in, int64_t heads,
    int64_t d_ff, int64_t step, int64_t passes, const Tensor& after, bool inject, double eps, double tolerance,
    const std::optional<Tensor>& routers_in, const std::optional<Tensor>& router_state, int64_t slow_period,
    double temperature) {
  const Tensor tokens = packed(tokens_in), weights = packed(weights_in);
  check_tensor(weights, "weights", ScalarType::Float, 2);
  check_tensor(tokens, "tokens", ScalarType::Float, 3);
  check(x_in.is_cpu() && x_in.dim() == 3 && x_in.scalar_type() == ScalarType::Float, "x must be float32 [B, N, d]");
  for (int64_t i = 0; i < 3; ++i) check(tokens.size(i) == x_in.size(i), "tokens must have the shape of x");
  const int64_t B = x_in.size(0), N = x_in.size(1), d = x_in.size(2), depth = weights.size(0);
  check(heads >= 1 && d >= 1 && d % heads == 0, "x must have a multiple of ", heads, " features, got ", d);
  check(d_ff >= 1 && passes >= 1, "d_ff and passes must be at least 1");
  check(step >= 0, "step must be at least 0, got ", step);
  check_tensor(after, "after", ScalarType::Long, 1);
  const int64_t reads = after.size(0);
  const int64_t* const read = data<int64_t>(after);
  for (int64_t i = 0; i < reads; ++i) {
    check(read[i] > (i > 0 ? read[i - 1] : step), "after must rise from more than step, got ", read[i]);
  }
  check(reads > 0 && read[reads - 1] == step + passes, "after must end with the last pass, ", step + passes);
  check(tolerance == 0 || (tolerance > 0 && depth == 1), "tolerance must be 0, or positive with one block");
  check(candidates.dim() == 3, "candidates must have shape [B, N, C]");
  const AttentionShape shape{B, heads, N, d / heads, candidates.size(2)};
  check(weights.size(1) == PassBlock::parameters(shape, d, d_ff),
        "weights must have a row for each block, of all its parameters");
  const Neighbors neighbors(candidates, shape, kLanes<A>);
  PassCall call{shape, d, step, {read, read + reads}, slow_period, inject, static_cast<A>(tolerance), neighbors, {}, {},
                0};
  for (int64_t i = 0; i < depth; ++i) {
    call.blocks.emplace_back(data<A>(weights) + i * weights.size(1), shape, d, d_ff, eps);
  }
  const Tensor x = packed(x_in), out = new_empty({reads, B, N, d}, ScalarType::Float);
  Tensor state = new_empty({0}, ScalarType::Float), used = new_empty({0}, ScalarType::Float);
  check(routers_in.has_value() == router_state.has_value(), "router_state must come with routers");
  if (routers_in) {
    const Tensor routers = packed(*routers_in);
    check_tensor(routers, "routers", ScalarType::Float, 2);
    check_tensor(*router_state, "router_state", ScalarType::Float, 3);
    const int64_t c = d / 2;
    call.router_state = 2 * c + heads;
    check(routers.size(0) == depth && routers.size(1) == PassRouter::parameters(d, c, heads),
          "routers must have a row for each block, of all its parameters");
    check(router_state->size(0) == depth && router_state->size(1) == B && router_state->size(2) == call.router_state,
          "router_state must be [depth, B, ", call.router_state, "]");
    check(slow_period >= 1 && temperature > 0, "slow_period and temperature must be positive");
    for (int64_t i = 0; i < depth; ++i) {
      const A* from = data<A>(routers) + i * routers.size(1);
      call.routers.emplace_back(from, d, c, heads, temperature, eps);
    }
    state = torch::stable::clone(packed(*router_state));
    used = new_empty({passes, depth, B, heads}, ScalarType::Float);
  }
  A *const found = data<A>(out), *const states = data<A>(state), *const weights_used = data<A>(used);
  with_sizes<A>(vectors_for<A>(shape.D), shape.slots(), [&](auto nv, auto s) {
    const auto run = [&](int64_t begin, int64_t end, PassMaze& maze) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t at = b * N * d;
        maze.run<nv(), s()>(b, data<A>(x) + at, data<A>(tokens) + at, found + at, B * N * d,
                            states + b * call.router_state, B * call.router_state, weights_used + b * heads, B * heads);
      }
    };
    if (N == 0 || depth == 0) return;
    const int64_t alone = mazes_alone(call);
    parallel_blocks(alone, 1, [&] { return PassMaze(call, 1); }, run);
    if (alone == B) return;
    PassMaze together(call, torch::stable::get_num_threads());
    run(alone, B, together);
  });
  return {out, state, used};
}

}  // namespace
}  // namespace poh

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) { m.impl("neighbor_passes", TORCH_BOX(&poh::neighbor_passes)); }
