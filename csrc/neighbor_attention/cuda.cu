// Attention of every cell to itself and its candidates. Forward, scores' gradients and dq: a group of lanes for each
// (maze, head, cell), a lane for each feature. dk and dv: the same groups gather from whoever reads their cell.
#include "common/device.h"
#include "neighbor_attention/cuda_sums.h"

namespace poh::cuda {
namespace {

// weights[B, H, slots, N]: every lane writes and reads those of the slots it owns (s % lanes).
template <class T, class A>
__global__ void __launch_bounds__(kAttentionThreads) attend(AttentionCall<T, A> c, A* weights, T* out) {
  const Places places(c);
  for (int64_t base = places.first; base < places.total; base += places.step) {
    const Place at = places.at(base);
    A* const own = weights + (at.b * c.H + at.h) * c.slots() * c.N + at.i;
    const T* const q = c.q.row(at.b, at.h, at.i);
    A max = -std::numeric_limits<A>::infinity();
    for (int64_t s = 0; s < c.slots(); ++s) {
      const A score = slot_dot(c, at, q, c.q.inner, c.keys, s) * c.scale + c.bias[at.h * c.slots() + s];
      if (c.target(at.b, at.i, s) >= 0 && score > max) max = score;
      if (at.live && at.lane == s % c.lanes) own[s * c.N] = score;
    }
    A sum = 0;
    for (int64_t s = at.lane; at.live && s < c.slots(); s += c.lanes) {
      const A e = c.target(at.b, at.i, s) < 0 ? A(0) : attention_exponential(own[s * c.N], max);
      own[s * c.N] = e;
      sum += e;
    }
    sum = warp_sum(sum, c.lanes);
    for (int64_t s = at.lane; at.live && s < c.slots(); s += c.lanes) own[s * c.N] /= sum;
    sum_slots(c, at, own, c.values, A(1), out + ((at.b * c.N + at.i) * c.H + at.h) * c.D);
  }
}

// Gradients of the scores [B, H, slots, N], and dq in the packed gradient [B, N, 3, H, Dh].
template <class T, class A>
__global__ void __launch_bounds__(kAttentionThreads)
    score_gradients(AttentionCall<T, A> c, Strided<T> g, const A* weights, A* gradients, T* out) {
  const Places places(c);
  for (int64_t base = places.first; base < places.total; base += places.step) {
    const Place at = places.at(base);
    const int64_t head = (at.b * c.H + at.h) * c.slots() * c.N + at.i;
    const A* const p = weights + head;
    A* const own = gradients + head;
    A mean = 0;
    for (int64_t s = 0; s < c.slots(); ++s) {
      const A dot = slot_dot(c, at, g.row(at.b, at.h, at.i), g.inner, c.values, s);
      mean += p[s * c.N] * dot;
      if (at.live && at.lane == s % c.lanes) own[s * c.N] = dot;
    }
    for (int64_t s = at.lane; at.live && s < c.slots(); s += c.lanes) {
      own[s * c.N] = attention_score_gradient(p[s * c.N], own[s * c.N], mean);
    }
    sum_slots(c, at, own, c.keys, c.scale, out + ((at.b * c.N + at.i) * 3 * c.H + at.h) * c.D);
  }
}

// dk and dv of cell j: what its own slot 0 gives, then the readers in their order.
template <class T, class A>
__global__ void __launch_bounds__(kAttentionThreads)
    gather_gradients(AttentionCall<T, A> c, Strided<T> g, const A* weights, const A* gradients, Readers readers,
                     T* out) {
  const Places places(c);
  for (int64_t base = places.first; base < places.total; base += places.step) {
    const auto [b, h, j, lane, live] = places.at(base);
    if (!live) continue;  // no shuffles here
    const int64_t head = (b * c.H + h) * c.slots() * c.N;
    const int64_t begin = readers.starts[b * (c.N + 1) + j], end = readers.starts[b * (c.N + 1) + j + 1];
    for (int64_t d = lane; d < c.D; d += c.lanes) {
      A dk = 0, dv = 0;
      const auto add = [&, b = b, h = h](int64_t i, int64_t s) {
        dk += gradients[head + s * c.N + i] * static_cast<A>(c.q.row(b, h, i)[d * c.q.inner]);
        dv += weights[head + s * c.N + i] * static_cast<A>(g.row(b, h, i)[d * g.inner]);
      };
      add(j, 0);
      for (int64_t e = begin; e < end; ++e) {
        const int64_t entry = readers.entries[b * c.N * c.C + e];
        add(entry / c.C, entry % c.C + 1);
      }
      T* const row = out + ((b * c.N + j) * 3 * c.H + h) * c.D + d;
      row[c.H * c.D] = static_cast<T>(dk * c.scale);
      row[2 * c.H * c.D] = static_cast<T>(dv);
    }
  }
}

struct CudaAttention {
  static constexpr bool kNeedsWeights = true;

  template <class T, class A = Accumulate<T>>
  struct Call {
    const AttentionArguments& a;
    int lanes = 1;
    AttentionCall<T, A> c;

    explicit Call(const AttentionArguments& a_) : a(a_) {
      const auto& [B, H, N, D, C] = a.shape;
      // Some features for each lane: what is done once for a slot is then shared out among fewer lanes, and a load of
      // the group is still a whole sector of 32 bytes.
      while (lanes * kLaneFeatures < D && lanes < kWarp) lanes *= 2;
      if (Cuda::checks_indices()) {
        if (const auto bad = Cuda::first_outside(a.candidates, -1, N, -1)) neighbor_error(bad->at, bad->value, N, C);
      }
      const auto table = [](const optional<Tensor>& t) {
        return Table<T, A>{t ? t->data_ptr() : nullptr, t && t->scalar_type() != dtype_of<A>()};
      };
      c = {a.shape, strided<T>(a.q), {strided<T>(a.k), table(a.key_offset)}, {strided<T>(a.v), table(a.value_offset)},
           data<int64_t>(a.candidates), table(a.bias), attention_scale<A>(D), lanes};
    }

    Shape shape() const { return {blocks_for(a.q, c.B * c.H * c.N, kAttentionThreads / lanes), kAttentionThreads}; }
  };

  template <class T, class A>
  static void forward(const Call<T, A>& call, A* weights, T* out) {
    launch(&attend<T, A>, call.a.q, call.shape(), call.c, weights, out);
  }

  template <class T, class A>
  static void backward(const Call<T, A>& call, const Strided<T>& g, const A* p, T* out, A* d_bias, A* d_key,
                       A* d_value) {
    const Tensor& q = call.a.q;
    const AttentionCall<T, A>& c = call.c;
    const int64_t slots = c.slots(), rows = c.H * slots;
    const Tensor room = empty(q, call.a.wide, c.B, rows, c.N);
    const ReaderLists lists(call.a.candidates);
    A* const ds = data<A>(room);
    launch(&score_gradients<T, A>, q, call.shape(), c, g, p, ds, out);
    launch(&gather_gradients<T, A>, q, call.shape(), c, g, p, static_cast<const A*>(ds), lists.readers, out);
    if (d_bias == nullptr && d_key == nullptr && d_value == nullptr) return;
    const int64_t chunks = (c.B * c.N + kChunk - 1) / kChunk, width = 2 * c.D + 1;
    const Tensor parts = empty(q, call.a.wide, chunks, rows, width);
    const Shape each{blocks_for(q, chunks * rows, 1), kAttentionThreads, 3 * kAttentionThreads * sizeof(A)};
    launch(&sum_chunks<T, A>, q, each, c, g, p, static_cast<const A*>(ds), chunks, data<A>(parts));
    launch(&finish_tables<A>, q, Shape{blocks_for(q, rows * width, kAttentionThreads), kAttentionThreads},
           data<const A>(parts), chunks, rows, c.D, d_bias, d_key, d_value);
  }
};

}  // namespace
}  // namespace poh::cuda

POH_CUDA_LIBRARY(m) {
  using Ops = poh::AttentionOps<poh::cuda::CudaAttention>;
  m.impl("neighbor_attention", TORCH_BOX(&Ops::forward));
  m.impl("neighbor_attention_backward", TORCH_BOX(&Ops::backward));
}
