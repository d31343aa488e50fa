// What the CUDA kernels of neighbour attention read, and what a group of lanes does with the slots of a cell.
#pragma once

#include <limits>

#include "common/warp.h"
#include "neighbor_attention/ops.h"

namespace poh::cuda {

constexpr int kAttentionThreads = 256, kLaneFeatures = 4;

// A table in T or in A, or none: zeros.
template <class T, class A>
struct Table {
  const void* at;
  bool narrow;
  __device__ A operator[](int64_t i) const {
    if (at == nullptr) return A(0);
    return narrow ? static_cast<A>(static_cast<const T*>(at)[i]) : static_cast<const A*>(at)[i];
  }
};

// Keys or values: what a slot gives is the row of its cell and the slot's own offset, added up.
template <class T, class A>
struct Given {
  Strided<T> rows;
  Table<T, A> offset;
};

template <class T, class A>
struct AttentionCall : AttentionShape {
  Strided<T> q;
  Given<T, A> keys, values;
  const int64_t* candidates;
  Table<T, A> bias;
  A scale;
  int lanes;  // of each cell: a power of two

  // The cell of a slot, -1 where there is none.
  __device__ int64_t target(int64_t b, int64_t i, int64_t s) const {
    if (s == 0) return i;
    const int64_t j = candidates[(b * N + i) * C + s - 1];
    POH_DEVICE_CHECK(j >= -1 && j < N, "candidates: a cell is out of range");
    return j;
  }
};

// A cell of a head of a maze, for one lane of its group.
struct Place {
  int64_t b, h, i;
  int lane;
  bool live;  // else it is past the end: the group goes along, and writes nothing
};

// The places of a grid, a group of lanes each. Every lane of a warp goes through the same number of rounds, for all of
// them take part in shuffles; past the end a group works on the last place.
template <class T, class A>
struct Places {
  const AttentionCall<T, A>& c;
  int lane;
  int64_t total, first, step;

  __device__ explicit Places(const AttentionCall<T, A>& call)
      : c(call), lane(static_cast<int>(threadIdx.x) % c.lanes), total(c.B * c.H * c.N) {
    const int per_warp = kWarp / c.lanes;
    first = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) / kWarp * per_warp;
    step = gridDim.x * static_cast<int64_t>(blockDim.x / kWarp) * per_warp;
  }
  __device__ Place at(int64_t base) const {
    const int64_t own = base + static_cast<int>(threadIdx.x) % kWarp / c.lanes;
    const int64_t item = own < total ? own : total - 1;
    if (total <= std::numeric_limits<int32_t>::max()) {  // a division of 64 bits takes a hundred instructions
      const uint32_t n = static_cast<uint32_t>(item), N = static_cast<uint32_t>(c.N), H = static_cast<uint32_t>(c.H);
      return {n / (H * N), n / N % H, n % N, lane, own < total};
    }
    return {item / (c.H * c.N), item / c.N % c.H, item % c.N, lane, own < total};
  }
};

// The dot product of x and what slot s gives the place; every lane of the group gets it.
template <class T, class A>
__device__ A slot_dot(const AttentionCall<T, A>& c, const Place& at, const T* x, int64_t inner,
                      const Given<T, A>& given, int64_t s) {
  const int64_t j = c.target(at.b, at.i, s), row = (at.h * c.slots() + s) * c.D;
  const T* const y = given.rows.row(at.b, at.h, j < 0 ? at.i : j);
  A dot = 0;
  for (int64_t d = at.lane; d < c.D; d += c.lanes) {
    dot += static_cast<A>(x[d * inner]) * (static_cast<A>(y[d * given.rows.inner]) + given.offset[row + d]);
  }
  return warp_sum(dot, c.lanes);
}

// out[D] = scale times the sum over the slots of factors[s * N] times what slot s gives. A lane reads the factors of
// the slots it owns (s % lanes), for only these it may just have written; the others get them by shuffles.
template <class T, class A>
__device__ void sum_slots(const AttentionCall<T, A>& c, const Place& at, const A* factors, const Given<T, A>& given,
                          A scale, T* out) {
  for (int64_t first = 0; first < c.D; first += c.lanes) {
    const int64_t d = first + at.lane;
    A sum = 0;
    for (int64_t s = 0; s < c.slots(); ++s) {
      const A mine = at.live && at.lane == s % c.lanes ? factors[s * c.N] : A(0);
      const A factor = __shfl_sync(kAllLanes, mine, static_cast<int>(s % c.lanes), c.lanes);
      if (d >= c.D) continue;
      const int64_t j = c.target(at.b, at.i, s), row = (at.h * c.slots() + s) * c.D;
      const T* const y = given.rows.row(at.b, at.h, j < 0 ? at.i : j);
      sum += factor * (static_cast<A>(y[d * given.rows.inner]) + given.offset[row + d]);
    }
    if (at.live && d < c.D) out[d] = static_cast<T>(sum * scale);
  }
}

}  // namespace poh::cuda
