// Attention of every cell to itself and its candidates. Forward, scores' gradients and dq: a group of lanes for each
// (maze, head, cell), a lane for each feature. dk and dv: the same groups gather from whoever reads their cell.
#include <optional>
#include <tuple>

#include "common/device.h"
#include "neighbor_attention/cuda_sums.h"

namespace poh::cuda {
namespace {

using std::optional;

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

// The tensors of a call, checked for what could make a kernel read what is not there.
struct Arguments {
  Tensor q, k, v, candidates;
  optional<Tensor> bias, key_offset, value_offset;
  int64_t B, H, N, D, C;
  int lanes = 1;

  Arguments(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& candidates_,
            const optional<Tensor>& bias_, const optional<Tensor>& key_offset_, const optional<Tensor>& value_offset_)
      : q(q_), k(k_), v(v_), candidates(packed(candidates_, q_, "candidates")),
        bias(packed(bias_, q_, "bias")), key_offset(packed(key_offset_, q_, "key_offset")),
        value_offset(packed(value_offset_, q_, "value_offset")) {
    check(q.dim() == 4, "q must have shape [B, H, N, Dh]");
    for (const Tensor* t : {&k, &v}) {
      check(t->device() == q.device(), "k and v must be on the device of q");
      check(t->dim() == 4 && t->scalar_type() == q.scalar_type(), "k and v must have the shape and dtype of q");
      for (int64_t d = 0; d < 4; ++d) check(t->size(d) == q.size(d), "k and v must have the shape and dtype of q");
    }
    B = q.size(0), H = q.size(1), N = q.size(2), D = q.size(3);
    check(D >= 1, "q must have Dh >= 1");
    check(candidates.dim() == 3, "candidates must have shape [B, N, C]");
    check_form(candidates, "candidates", ScalarType::Long, 3);
    check(candidates.size(0) == B && candidates.size(1) == N, "candidates must have a list for each cell");
    C = candidates.size(2);
    const auto check_table = [&](const optional<Tensor>& t, int64_t numbers) {
      check(!t || t->numel() == numbers, "bias and offsets must have a row for each head and slot");
      check(!t || t->scalar_type() == q.scalar_type() || t->scalar_type() == wide(),
            "bias and offsets must have the dtype of q, or float32");
    };
    check_table(bias, H * (C + 1));
    check_table(key_offset, H * (C + 1) * D);
    check_table(value_offset, H * (C + 1) * D);
    // Some features for each lane: what is done once for a slot is then shared out among fewer lanes, and a load of
    // the group is still a whole sector of 32 bytes.
    while (lanes * kLaneFeatures < D && lanes < kWarp) lanes *= 2;
    if (checks_wanted()) {
      if (const auto bad = first_outside(candidates, -1, N, -1)) neighbor_error(bad->at, bad->value, N, C);
    }
  }

  ScalarType wide() const {
    return q.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }
  bool empty_call() const { return B * H * N == 0; }
  Shape shape() const { return {blocks_for(q, B * H * N, kAttentionThreads / lanes), kAttentionThreads}; }

  template <class T, class A>
  AttentionCall<T, A> call() const {
    const auto strided = [](const Tensor& t) {
      return Strided<T>{data<T>(t), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
    };
    const auto table = [](const optional<Tensor>& t) {
      return Table<T, A>{t ? t->data_ptr() : nullptr, t && t->scalar_type() != dtype_of<A>()};
    };
    return {B, H, N, D, C, strided(q), {strided(k), table(key_offset)}, {strided(v), table(value_offset)},
            data<int64_t>(candidates), table(bias), attention_scale<A>(D), lanes};
  }
};

std::tuple<Tensor, Tensor> neighbor_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                              const Tensor& candidates, const optional<Tensor>& bias,
                                              const optional<Tensor>& key_offset, const optional<Tensor>& value_offset,
                                              bool save) {
  const Arguments a(q, k, v, candidates, bias, key_offset, value_offset);
  const Tensor out = empty(q, q.scalar_type(), a.B, a.N, a.H, a.D);
  const Tensor weights = empty(q, a.wide(), a.B, a.H, a.C + 1, a.N);
  dispatch(q.scalar_type(), "q", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    if (!a.empty_call()) launch(&attend<T, A>, q, a.shape(), a.call<T, A>(), data<A>(weights), data<T>(out));
  });
  return {out, save ? weights : empty(q, a.wide(), 0)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> neighbor_attention_backward(
    const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& candidates,
    const optional<Tensor>& bias, const optional<Tensor>& key_offset, const optional<Tensor>& value_offset,
    const Tensor& weights_in) {
  const Arguments a(q, k, v, candidates, bias, key_offset, value_offset);
  const int64_t slots = a.C + 1, rows = a.H * slots;
  check(grad.device() == q.device(), "grad must be on the device of q");
  check(grad.dim() == 4 && grad.size(0) == a.B && grad.size(1) == a.N && grad.size(2) == a.H && grad.size(3) == a.D &&
            grad.scalar_type() == q.scalar_type(),
        "grad must be [B, N, H, Dh], of the dtype of q");
  const Tensor weights = packed(weights_in, q, "weights");
  check(weights.numel() == a.B * rows * a.N && weights.scalar_type() == a.wide(),
        "weights must be those of the forward pass with save=True");
  const Tensor out = empty(q, q.scalar_type(), a.B, a.N, 3, a.H, a.D);
  const Tensor d_bias = bias ? zeros(q, a.wide(), a.H, slots) : empty(q, a.wide(), 0);
  const Tensor d_key = key_offset ? zeros(q, a.wide(), a.H, slots, a.D) : empty(q, a.wide(), 0);
  const Tensor d_value = value_offset ? zeros(q, a.wide(), a.H, slots, a.D) : empty(q, a.wide(), 0);
  if (a.empty_call()) return {out, d_bias, d_key, d_value};
  const Tensor gradients = empty(q, a.wide(), a.B, a.H, slots, a.N);
  const ReaderLists lists(a.candidates);
  dispatch(q.scalar_type(), "q", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const AttentionCall<T, A> c = a.call<T, A>();
    const Strided<T> g{data<T>(grad), grad.stride(0), grad.stride(2), grad.stride(1), grad.stride(3)};
    const A* const p = data<A>(weights);
    A* const ds = data<A>(gradients);
    launch(&score_gradients<T, A>, q, a.shape(), c, g, p, ds, data<T>(out));
    launch(&gather_gradients<T, A>, q, a.shape(), c, g, p, static_cast<const A*>(ds), lists.readers, data<T>(out));
    if (!bias && !key_offset && !value_offset) return;
    const int64_t chunks = (a.B * a.N + kChunk - 1) / kChunk, width = 2 * a.D + 1;
    const Tensor parts = empty(q, a.wide(), chunks, rows, width);
    const Shape each{blocks_for(q, chunks * rows, 1), kAttentionThreads, 3 * kAttentionThreads * sizeof(A)};
    launch(&sum_chunks<T, A>, q, each, c, g, p, static_cast<const A*>(ds), chunks, data<A>(parts));
    launch(&finish_tables<A>, q, Shape{blocks_for(q, rows * width, kAttentionThreads), kAttentionThreads},
           static_cast<const A*>(data<A>(parts)), chunks, rows, a.D, bias ? data<A>(d_bias) : static_cast<A*>(nullptr),
           key_offset ? data<A>(d_key) : static_cast<A*>(nullptr),
           value_offset ? data<A>(d_value) : static_cast<A*>(nullptr));
  });
  return {out, d_bias, d_key, d_value};
}

}  // namespace
}  // namespace poh::cuda

POH_CUDA_LIBRARY(m) {
  m.impl("neighbor_attention", TORCH_BOX(&poh::cuda::neighbor_attention));
  m.impl("neighbor_attention_backward", TORCH_BOX(&poh::cuda::neighbor_attention_backward));
}
