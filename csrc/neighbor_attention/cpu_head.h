// Neighbour attention of one head of one maze, forward and backward, W cells at a time.
#pragma once

#include "neighbor_attention/cpu_lanes.h"

namespace poh {

// What a head reads: rows of its maze, tables of its own, and the lists of the cells that attend: all cells of the maze,
// or, if `listed`, those in `cells` alone, with outputs in the order of that list.
template <class A, int NV, int S, bool listed = false>
struct Head {
  static constexpr int64_t W = kLanes<A>;
  const AttentionShape& shape;
  int64_t vectors_, padded;
  Rows<A> q, k, v;
  const A *bias, *key_offset, *value_offset;  // [slots], [slots, padded] twice
  const int32_t* lists;  // as Neighbors::block, for the cells that attend
  A scale;
  int64_t count;         // of the cells that attend
  const int32_t* cells = nullptr;

  int64_t vectors() const { return NV ? NV : vectors_; }
  int64_t slots() const { return S ? S : shape.slots(); }
  const int32_t* block(int64_t first) const { return lists + first * shape.C; }
  int64_t cell(int64_t i) const {
    i = std::min(i, count - 1);  // past the last: the last one
    return listed ? cells[i] : i;
  }

  // The cells of slot s of the W cells from `first` on.
  void targets(const int32_t* lists, int64_t s, int64_t first, int64_t (&to)[W]) const {
    for (int64_t r = 0; r < W; ++r) {
      const int32_t j = s == 0 ? -1 : lists[(s - 1) * W + r];
      to[r] = j < 0 ? cell(first + r) : j;
    }
  }

  // products[s] = a_i . (rows_j + offset_s) for the W cells from `first` on.
  void dots(const Rows<A>& a, const Rows<A>& rows, const A* offset, int64_t first, const int32_t* lists,
            A* products) const {
    for (int64_t s = 0; s < slots(); ++s) {
      int64_t to[W];
      targets(lists, s, first, to);
      const A* const added = offset + s * padded;
      // A call for each lane would cost more than its product.
      const auto product = [&](int r) __attribute__((always_inline)) {
        return lane_products<A, NV>(a[cell(first + r)], rows[to[r]], added, vectors());
      };
      store(products + s * W, sums_by_lane<A>(product));
    }
  }

  // scores[slots, W] -> weights, in place.
  void softmax(A* scores, const int32_t* lists) const {
    constexpr A low = -std::numeric_limits<A>::infinity();
    Vector<A> max = load(scores) * scale + bias[0];
    store(scores, max);
    for (int64_t s = 1; s < slots(); ++s) {
      A* const score = scores + s * W;
      const int32_t* const there = lists + (s - 1) * W;
      for (int64_t r = 0; r < W; ++r) score[r] = there[r] < 0 ? low : score[r] * scale + bias[s];
      const Vector<A> x = load(score);
      max = x > max ? x : max;
    }
    Vector<A> sum{};
    for (int64_t s = 0; s < slots(); ++s) {
      A* const score = scores + s * W;
      store(score, attention_exponential(load(score), max));
      if (s > 0) {  // where all others are -inf or NaN, an absent slot must still weigh nothing
        const int32_t* const there = lists + (s - 1) * W;
        for (int64_t r = 0; r < W; ++r) score[r] = there[r] < 0 ? A(0) : score[r];
      }
      sum += load(score);
    }
    for (int64_t s = 0; s < slots(); ++s) store(scores + s * W, load(scores + s * W) / sum);
  }

  // sum_s weights[s, r] (rows_j + offset_s) for one cell.
  void weighted(const A* weights, const Rows<A>& rows, const A* offset, const int32_t* lists, int64_t own, int64_t r,
                A* out) const {
    for (int64_t d = 0; d < vectors(); ++d) {
      Vector<A> sum = (load(rows[own] + d * W) + load(offset + d * W)) * weights[r];
      for (int64_t s = 1; s < slots(); ++s) {
        const int32_t there = lists[(s - 1) * W + r];
        const A* const row = rows[there < 0 ? own : there];
        sum += (load(row + d * W) + load(offset + s * padded + d * W)) * weights[s * W + r];
      }
      store(out + d * W, sum);
    }
  }

  template <class T>
  void forward(T* out, int64_t out_stride, A* kept, A* room) const {
    A* const weights = room;  // [slots, W]
    A* const row = room + slots() * W;
    for (int64_t first = 0; first < count; first += W) {
      const int32_t* const lists = block(first);
      const int64_t here = std::min(W, count - first);
      dots(q, k, key_offset, first, lists, weights);
      softmax(weights, lists);
      for (int64_t r = 0; r < here; ++r) {
        weighted(weights, v, value_offset, lists, cell(first + r), r, row);
        store_row(row, shape.D, out + (first + r) * out_stride);
      }
      if (kept == nullptr) continue;
      for (int64_t s = 0; s < slots(); ++s) {
        if (here == W) {
          store(kept + s * shape.N + first, load(weights + s * W));
        } else {
          store_part(kept + s * shape.N + first, load(weights + s * W), here);
        }
      }
    }
  }

  // The weights of W cells, and the gradients of their scores; 0 past the last cell.
  void score_gradients(const A* kept, const Rows<A>& g, int64_t first, int64_t here, const int32_t* lists, A* weights,
                       A* gradients) const {
    dots(g, v, value_offset, first, lists, gradients);
    Vector<A> mean{};
    for (int64_t s = 0; s < slots(); ++s) {
      const A* const from = kept + s * shape.N + first;
      const Vector<A> p = here == W ? load(from) : load_part(from, here);
      store(weights + s * W, p);
      mean += p * load(gradients + s * W);
    }
    for (int64_t s = 0; s < slots(); ++s) {
      A* const at = gradients + s * W;
      store(at, attention_score_gradient(load(weights + s * W), load(at), mean));
      for (int64_t r = here; r < W; ++r) at[r] = 0;
    }
  }

  // to_j += ds_s x_i for all slots of one cell.
  void scatter(const A* factors, const A* x, const int32_t* lists, int64_t own, int64_t r, A* to) const {
    for (int64_t d = 0; d < vectors(); ++d) {
      const Vector<A> part = load(x + d * W);
      for (int64_t s = 0; s < slots(); ++s) {
        const int32_t there = s == 0 ? -1 : lists[(s - 1) * W + r];
        A* const at = to + (there < 0 ? own : there) * padded + d * W;
        store(at, load(at) + part * factors[s * W + r]);
      }
    }
  }

  // to_s += sum over the cells of factors_s x_i.
  void add_to_table(const A* factors, const Rows<A>& x, int64_t first, int64_t here, A* to) const {
    for (int64_t d = 0; d < vectors(); ++d) {
      for (int64_t s = 0; s < slots(); ++s) {
        Vector<A> sum{};
        for (int64_t r = 0; r < here; ++r) sum += load(x[first + r] + d * W) * factors[s * W + r];
        A* const at = to + s * padded + d * W;
        store(at, load(at) + sum);
      }
    }
  }

  // dq to its rows; dk and dv [N, padded] and the tables' gradients are added to.
  template <class T>
  void backward(const Rows<A>& g, const A* kept, T* dq, int64_t stride, A* dk, A* dv, A* d_bias, A* d_key, A* d_value,
                A* room) const {
    A *const weights = room, *const gradients = weights + slots() * W, *const row = gradients + slots() * W;
    for (int64_t first = 0; first < count; first += W) {
      const int32_t* const lists = block(first);
      const int64_t here = std::min(W, count - first);
      score_gradients(kept, g, first, here, lists, weights, gradients);
      for (int64_t s = 0; s < slots(); ++s) {
        const Vector<A> ds = load(gradients + s * W);
        if (d_bias != nullptr) store(d_bias + s * W, load(d_bias + s * W) + ds);
        store(gradients + s * W, ds * scale);
      }
      for (int64_t r = 0; r < here; ++r) {
        const int64_t own = first + r;
        weighted(gradients, k, key_offset, lists, own, r, row);
        store_row(row, shape.D, dq + own * stride);
        scatter(gradients, q[own], lists, own, r, dk);
        scatter(weights, g[own], lists, own, r, dv);
      }
      if (d_key != nullptr) add_to_table(gradients, q, first, here, d_key);
      if (d_value != nullptr) add_to_table(weights, g, first, here, d_value);
    }
  }
};

}  // namespace poh
