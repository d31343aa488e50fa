// Every operator schema of poh_ext, and the Python module itself (what was built, and how).
// Kernels register themselves for these schemas in the folder of their operator; Python meets them in poh_ext/ops/.
#include <torch/csrc/stable/library.h>

#include "common/python_module.h"

STABLE_TORCH_LIBRARY(poh_ext, m) {
  m.def(
      "horizon_ce(Tensor logits, Tensor targets, Tensor? rows, Tensor? valid, Tensor? candidates, "
      "Tensor? horizon_weights, Tensor? class_weight, int horizons, float label_smoothing, int ignore_index, "
      "int reduction, float z_loss, float softcap, bool metrics) -> "
      "(Tensor loss, Tensor lse, Tensor coefficients, Tensor metrics)");
  m.def(
      "horizon_ce_backward(Tensor grad, Tensor logits, Tensor targets, Tensor? rows, Tensor? valid, "
      "Tensor? candidates, Tensor? class_weight, Tensor lse, Tensor coefficients, float label_smoothing, "
      "int ignore_index, float z_loss, float softcap) -> Tensor");
  // wanted: the gradients to compute, of hidden (1), weight (2) and bias (4), added up; the others are empty.
  m.def(
      "horizon_linear_ce(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor? rows, Tensor? valid, "
      "Tensor? candidates, Tensor? horizon_weights, Tensor? class_weight, int horizons, float label_smoothing, "
      "int ignore_index, int reduction, float z_loss, float softcap, bool metrics, int wanted) -> "
      "(Tensor loss, Tensor coefficients, Tensor metrics, Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "horizon_linear_ce_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, "
      "Tensor? rows, Tensor? valid, Tensor? candidates, Tensor? class_weight, Tensor coefficients, "
      "float label_smoothing, int ignore_index, float z_loss, float softcap, int wanted) -> "
      "(Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)");
  // out [B, N, H, Dh]; weights [B, H, C + 1, N] if save, else empty.
  m.def(
      "neighbor_attention(Tensor q, Tensor k, Tensor v, Tensor candidates, Tensor? bias, Tensor? key_offset, "
      "Tensor? value_offset, bool save) -> (Tensor out, Tensor weights)");
  m.def(
      "neighbor_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor candidates, Tensor? bias, "
      "Tensor? key_offset, Tensor? value_offset, Tensor weights) -> "
      "(Tensor grad_qkv, Tensor grad_bias, Tensor grad_key_offset, Tensor grad_value_offset)");
  m.def(
      "neighbor_passes(Tensor x, Tensor tokens, Tensor candidates, Tensor weights, int heads, int d_ff, int step, "
      "int passes, Tensor after, bool inject, float eps, float tolerance, Tensor? routers, Tensor? router_state, "
      "int slow_period, float temperature) -> (Tensor, Tensor, Tensor)");
  // The mask is a function of seed and place alone; the gradient is the same op on the gradient.
  m.def("dropout(Tensor x, float p, int seed) -> Tensor");
  m.def(
      "generate_mazes(Tensor indices, int seed, int height, int width, str algorithm, int low, int high) "
      "-> Tensor");
  m.def("maze_neighbors(Tensor passages) -> Tensor");
  m.def("maze_valid_mask(Tensor passages) -> Tensor");
  m.def("maze_distances(Tensor passages, Tensor goal) -> Tensor");
  m.def("maze_shortest_paths(Tensor passages, Tensor start, Tensor goal, int length) -> (Tensor, Tensor)");
  m.def(
      "maze_endpoints(Tensor passages, Tensor indices, int seed, int min_path, int max_path, Tensor? allowed) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "greedy_rollout(Tensor logits, Tensor passages, Tensor start, Tensor goal, int max_steps, bool moves) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("route(Tensor logits, float temperature) -> (Tensor weights, Tensor entropy)");
  m.def("routing_entropy(Tensor logits, float temperature, int reduction) -> Tensor");
  m.def(
      "route_backward(Tensor? grad_weights, Tensor grad_entropy, float entropy_scale, Tensor logits, "
      "Tensor? weights, float temperature) -> Tensor");
}

POH_PYTHON_MODULE(POH_MODULE, "C++ kernels of poh_ext", {"module", POH_STRING(POH_MODULE)},
                  {"cpu_capability", POH_CAPABILITY}, {"torch_built_against", POH_TORCH_BUILT},
                  {"schemas", POH_SCHEMAS}, {"compiler", POH_COMPILER})
