// Attention of every cell to itself and its candidates. Forward, scores' gradients and dq: a group of lanes for each
// (maze, head, cell), a lane for each feature. dk and dv: the same groups gather from whoever reads their cell.
#include <optional>
#include <tuple>

#include "cuda/indices.h"
#include "cuda/neighbor_attention.h"

namespace poh::cuda {
namespace {

using std::optional;

// weights[B, H, slots, N]: every lane writes and reads those of the slots it owns; the others get them by shuffles.
template <class T, class A>
__global__ void __launch_bounds__(kAttentionThreads) attend(AttentionCall<T, A> c, A* weights, T* out) {
  const Items items(c.lanes, c.B * c.H * c.N);
  const int lane = items.lane;
  for (int64_t base = items.first; base < items.total; base += items.step) {
    const bool live = items.item(base) < items.total;
    const int64_t item = live ? items.item(base) : items.total - 1;
    const int64_t b = item / (c.H * c.N), h = item / c.N % c.H, i = item % c.N;
    A* const own = weights + (b * c.H + h) * c.slots() * c.N + i;
    const T* const q = c.q.row(b, h, i);
    A max = -std::numeric_limits<A>::infinity();
    for (int64_t s = 0; s < c.slots(); ++s) {
      const int64_t j = c.target(b, i, s), row = (h * c.slots() + s) * c.D;
      const T* const k = c.k.row(b, h, j < 0 ? i : j);
      A dot = 0;
      for (int64_t d = lane; d < c.D; d += c.lanes) {
        dot += static_cast<A>(q[d * c.q.inner]) * (static_cast<A>(k[d * c.k.inner]) + c.key_offset[row + d]);
      }
      dot = warp_sum(dot, c.lanes) * c.scale + c.bias[h * c.slots() + s];
      if (j >= 0 && dot > max) max = dot;
      if (live && lane == s % c.lanes) own[s * c.N] = dot;
    }
    A sum = 0;
    for (int64_t s = lane; live && s < c.slots(); s += c.lanes) {
      const A e = c.target(b, i, s) < 0 ? A(0) : attention_exponential(own[s * c.N], max);
      own[s * c.N] = e;
      sum += e;
    }
    sum = warp_sum(sum, c.lanes);
    for (int64_t s = lane; live && s < c.slots(); s += c.lanes) own[s * c.N] /= sum;
    for (int64_t first = 0; first < c.D; first += c.lanes) {
      const int64_t d = first + lane;
      A value = 0;
      for (int64_t s = 0; s < c.slots(); ++s) {
        const A p = from_owner(live && lane == s % c.lanes ? own[s * c.N] : A(0), s, c.lanes);
        if (d >= c.D) continue;
        const int64_t j = c.target(b, i, s), row = (h * c.slots() + s) * c.D;
        value += p * (static_cast<A>(c.v.row(b, h, j < 0 ? i : j)[d * c.v.inner]) + c.value_offset[row + d]);
      }
      if (live && d < c.D) out[((b * c.N + i) * c.H + h) * c.D + d] = static_cast<T>(value);
    }
  }
}

// Gradients of the scores [B, H, slots, N], and dq in the packed gradient [B, N, 3, H, Dh].
template <class T, class A>
__global__ void __launch_bounds__(kAttentionThreads)
    score_gradients(AttentionCall<T, A> c, Strided<T> g_rows, const A* weights, A* gradients, T* out) {
  const Items items(c.lanes, c.B * c.H * c.N);
  const int lane = items.lane;
  for (int64_t base = items.first; base < items.total; base += items.step) {
    const bool live = items.item(base) < items.total;
    const int64_t item = live ? items.item(base) : items.total - 1;
    const int64_t b = item / (c.H * c.N), h = item / c.N % c.H, i = item % c.N;
    const int64_t place = (b * c.H + h) * c.slots() * c.N + i;
    const A* const p = weights + place;
    A* const own = gradients + place;
    const T* const g = g_rows.row(b, h, i);
    A mean = 0;
    for (int64_t s = 0; s < c.slots(); ++s) {
      const int64_t j = c.target(b, i, s), row = (h * c.slots() + s) * c.D;
      const T* const v = c.v.row(b, h, j < 0 ? i : j);
      A dot = 0;
      for (int64_t d = lane; d < c.D; d += c.lanes) {
        dot += static_cast<A>(g[d * g_rows.inner]) * (static_cast<A>(v[d * c.v.inner]) + c.value_offset[row + d]);
      }
      dot = warp_sum(dot, c.lanes);
      mean += p[s * c.N] * dot;
      if (live && lane == s % c.lanes) own[s * c.N] = dot;
    }
    for (int64_t s = lane; live && s < c.slots(); s += c.lanes) {
      own[s * c.N] = attention_score_gradient(p[s * c.N], own[s * c.N], mean);
    }
    for (int64_t first = 0; first < c.D; first += c.lanes) {
      const int64_t d = first + lane;
      A value = 0;
      for (int64_t s = 0; s < c.slots(); ++s) {
        const A ds = from_owner(live && lane == s % c.lanes ? own[s * c.N] : A(0), s, c.lanes);
        if (d >= c.D) continue;
        const int64_t j = c.target(b, i, s), row = (h * c.slots() + s) * c.D;
        value += ds * (static_cast<A>(c.k.row(b, h, j < 0 ? i : j)[d * c.k.inner]) + c.key_offset[row + d]);
      }
      if (live && d < c.D) out[((b * c.N + i) * 3 * c.H + h) * c.D + d] = static_cast<T>(value * c.scale);
    }
  }
}

// dk and dv of cell j: what its own slot 0 gives, then the readers in their order.
template <class T, class A>
__global__ void __launch_bounds__(kAttentionThreads)
    gather_gradients(AttentionCall<T, A> c, Strided<T> g, const A* weights, const A* gradients, Readers readers,
                     T* out) {
  const Items items(c.lanes, c.B * c.H * c.N);
  for (int64_t base = items.first; base < items.total; base += items.step) {
    const int64_t item = items.item(base);
    if (item >= items.total) continue;  // no shuffles here
    const int64_t b = item / (c.H * c.N), h = item / c.N % c.H, j = item % c.N;
    const int64_t head = (b * c.H + h) * c.slots() * c.N;
    const int64_t begin = readers.starts[b * (c.N + 1) + j], end = readers.starts[b * (c.N + 1) + j + 1];
    for (int64_t d = items.lane; d < c.D; d += c.lanes) {
      A dk = 0, dv = 0;
      const auto add = [&](int64_t i, int64_t s) {
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

constexpr int64_t kChunk = 512;  // cells summed by one block: fixed, so that sums do not depend on the device

// Sums over the cells of one chunk, for one head and slot: parts[chunk, H, slots, 2 D + 1] of key offset, value offset
// and bias. Groups of lanes take the cells in turn, and are added in their order.
template <class T, class A>
__global__ void __launch_bounds__(kAttentionThreads)
    sum_chunks(AttentionCall<T, A> c, Strided<T> g, const A* weights, const A* gradients, int64_t chunks, A* parts) {
  POH_DYNAMIC_SHARED(A, of_group);  // [groups, 3, lanes]
  const int lane = static_cast<int>(threadIdx.x) % c.lanes, group = static_cast<int>(threadIdx.x) / c.lanes;
  const int groups = static_cast<int>(blockDim.x) / c.lanes;
  const int64_t cells = c.B * c.N, width = 2 * c.D + 1;
  for (int64_t job = blockIdx.x; job < chunks * c.H * c.slots(); job += gridDim.x) {
    const int64_t chunk = job / (c.H * c.slots()), h = job / c.slots() % c.H, s = job % c.slots();
    const int64_t last = (chunk + 1) * kChunk < cells ? (chunk + 1) * kChunk : cells;
    for (int64_t first = 0; first < c.D; first += c.lanes) {
      const int64_t d = first + lane;
      A of_key = 0, of_value = 0, of_bias = 0;
      for (int64_t r = chunk * kChunk + group; r < last; r += groups) {
        const int64_t b = r / c.N, i = r % c.N, at = ((b * c.H + h) * c.slots() + s) * c.N + i;
        of_bias += gradients[at];
        if (d >= c.D) continue;
        of_key += gradients[at] * static_cast<A>(c.q.row(b, h, i)[d * c.q.inner]);
        of_value += weights[at] * static_cast<A>(g.row(b, h, i)[d * g.inner]);
      }
      A* const mine = of_group + group * 3 * c.lanes + lane;
      mine[0] = of_key;
      mine[c.lanes] = of_value;
      mine[2 * c.lanes] = of_bias;
      __syncthreads();
      if (group == 0) {
        A sums[3] = {0, 0, 0};
        for (int other = 0; other < groups; ++other) {
          for (int n = 0; n < 3; ++n) sums[n] += of_group[(other * 3 + n) * c.lanes + lane];
        }
        A* const to = parts + job * width;
        if (d < c.D) {
          to[d] = sums[0] * c.scale;
          to[c.D + d] = sums[1];
        }
        if (d == 0) to[2 * c.D] = sums[2];
      }
      __syncthreads();
    }
  }
}

// parts summed over the chunks, in order and in double.
template <class A>
__global__ void __launch_bounds__(kAttentionThreads)
    finish_tables(const A* parts, int64_t chunks, int64_t rows, int64_t D, A* bias, A* key_offset, A* value_offset) {
  const int64_t width = 2 * D + 1, step = gridDim.x * static_cast<int64_t>(blockDim.x);
  for (int64_t t = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; t < rows * width; t += step) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += parts[chunk * rows * width + t];
    const int64_t row = t / width, column = t % width;
    if (column == 2 * D) {
      if (bias != nullptr) bias[row] = static_cast<A>(sum);
    } else if (column < D) {
      if (key_offset != nullptr) key_offset[row * D + column] = static_cast<A>(sum);
    } else if (value_offset != nullptr) {
      value_offset[row * D + column - D] = static_cast<A>(sum);
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
    while (lanes < D && lanes < kWarp) lanes *= 2;
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
    return {B, H, N, D, C, strided(q), strided(k), strided(v), data<int64_t>(candidates), table(bias),
            table(key_offset), table(value_offset), attention_scale<A>(D), lanes};
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

Readers find_readers(const Arguments& a, const Tensor& counts, const Tensor& starts, const Tensor& entries) {
  const Readers readers{data<int64_t>(starts), data<int64_t>(entries)};
  const int64_t* const candidates = data<int64_t>(a.candidates);
  int* const count = data<int>(counts);
  const Shape all{blocks_for(a.q, a.B * a.N * a.C, kAttentionThreads), kAttentionThreads};
  launch(&count_readers, a.q, all, candidates, a.B, a.N, a.C, count);
  launch(&start_lists, a.q, Shape{blocks_for(a.q, a.B, 1), kAttentionThreads}, a.B, a.N, count, readers.starts);
  launch(&fill_lists, a.q, all, candidates, a.B, a.N, a.C, count, readers);
  const Shape lists{blocks_for(a.q, a.B * a.N, kAttentionThreads), kAttentionThreads};
  launch(&sort_lists, a.q, lists, a.B, a.N, a.C, readers);
  return readers;
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
  const Tensor counts = zeros(q, ScalarType::Int, a.B, a.N), starts = empty(q, ScalarType::Long, a.B, a.N + 1);
  const Tensor entries = empty(q, ScalarType::Long, a.B, a.N, a.C);
  const Tensor gradients = empty(q, a.wide(), a.B, a.H, slots, a.N);
  const Readers readers = find_readers(a, counts, starts, entries);
  dispatch(q.scalar_type(), "q", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const AttentionCall<T, A> c = a.call<T, A>();
    const Strided<T> g{data<T>(grad), grad.stride(0), grad.stride(2), grad.stride(1), grad.stride(3)};
    const A* const p = data<A>(weights);
    A* const ds = data<A>(gradients);
    launch(&score_gradients<T, A>, q, a.shape(), c, g, p, ds, data<T>(out));
    launch(&gather_gradients<T, A>, q, a.shape(), c, g, p, static_cast<const A*>(ds), readers, data<T>(out));
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
