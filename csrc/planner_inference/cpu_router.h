// The router of a PoH planner for one maze: poh_ext/models/layers.py's Router with pooled routing, without a graph.
#pragma once

#include "planner_inference/cpu_layers.h"

namespace poh {

class PassRouter {
  using A = float;

  // h <- new + update (h - new), as poh_ext/models/layers.py's GRUCell
  struct Cell {
    Linear from_input, from_state;
    LayerNorm norm;

    Cell(const A*& from, int64_t in, int64_t c, double eps)
        : from_input(from, in, 3 * c), from_state(from, c, 3 * c), norm(from, c, eps) {}

    void step(const A* input, A* h, A* room) const {
      const int64_t c = from_state.in;
      A *const x = room, *const g = room + from_input.stride;
      from_input.apply(input, from_input.in, 1, x);
      from_state.apply(h, c, 1, g);
      const A* const zero = zeros_.data();
      for (int64_t j = 0; j < c; ++j) {
        const A reset = sigmoid(x[j] + g[j]), update = sigmoid(x[c + j] + g[c + j]);
        const A fresh = fast_tanh(x[2 * c + j] + reset * g[2 * c + j]);
        h[j] = fresh + update * (h[j] - fresh);
      }
      norm.apply(h, zero, h);
    }

   private:
    std::vector<A> zeros_ = std::vector<A>(static_cast<size_t>(from_state.in), A(0));
    static A sigmoid(A x) { return A(0.5) + A(0.5) * fast_tanh(A(0.5) * x); }
  };

  Linear project_;
  Cell slow_, fast_;
  Linear mix_, logits_;
  A inverse_temperature_;
  int64_t c_, heads_;

 public:
  // Reads the parameters in the order of poh_ext/ops/planner_inference.py.
  PassRouter(const A*& from, int64_t d, int64_t c, int64_t heads, double temperature, double eps)
      : project_(from, d, c), slow_(from, c, c, eps), fast_(from, 2 * c, c, eps), mix_(from, c, c, false),
        logits_(from, c, heads), inverse_temperature_(static_cast<A>(1 / temperature)), c_(c), heads_(heads) {}

  static int64_t parameters(int64_t d, int64_t c, int64_t heads) {
    const int64_t cells = (3 * c * c + 3 * c) + 2 * c + (6 * c * c + 3 * c) + 2 * c + 2 * (3 * c * c + 3 * c);
    return c * d + c + cells + c * c + heads * c + heads;
  }
  int64_t room() const { return 2 * c_ + project_.stride + mix_.stride + logits_.stride + 2 * fast_.from_input.stride; }

  // weights[heads] of the mean token [d]; state [2 c] is the slow cell, then the fast one.
  void step(const A* mean, bool slow_turn, A* state, A* weights, A* room) const {
    A *const slow = state, *const fast = state + c_;
    A *const u = room, *const both = u + project_.stride, *const mixed = both + 2 * c_;
    A *const scores = mixed + mix_.stride, *const gates = scores + logits_.stride;
    project_.apply(mean, project_.in, 1, u);
    if (slow_turn) slow_.step(u, slow, gates);
    std::copy(u, u + c_, both);
    std::copy(slow, slow + c_, both + c_);
    fast_.step(both, fast, gates);
    mix_.apply(slow, c_, 1, mixed);
    for (int64_t j = 0; j < c_; ++j) mixed[j] += fast[j];
    logits_.apply(mixed, c_, 1, scores);
    A max = -std::numeric_limits<A>::infinity(), sum = 0;
    for (int64_t h = 0; h < heads_; ++h) max = scores[h] > max ? scores[h] : max;
    for (int64_t h = 0; h < heads_; ++h) sum += weights[h] = exp_nonpositive((scores[h] - max) * inverse_temperature_);
    for (int64_t h = 0; h < heads_; ++h) weights[h] /= sum;
  }
};

}  // namespace poh
