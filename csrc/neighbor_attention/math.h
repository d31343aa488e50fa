// The mathematics of neighbour attention, for one cell i of one head and the slots s that are there, each with a cell
// j(s): slot 0 is i itself, slot c + 1 its c-th candidate.
//
//   score_s = q_i . (k_j + key_offset_s) / sqrt(Dh) + bias_s      p = softmax of the scores over s
//   out_i = sum_s p_s (v_j + value_offset_s)
//
// With g = d loss / d out_i and dp_s = g . (v_j + value_offset_s):
//
//   ds_s = p_s (dp_s - sum_t p_t dp_t)                            d bias_s += ds_s
//   dq_i = sum_s ds_s (k_j + key_offset_s) / sqrt(Dh)
//   dk_j, d key_offset_s += ds_s q_i / sqrt(Dh)                   dv_j, d value_offset_s += p_s g
//
// A slot that is absent has p_s = 0 and reads the cell itself, so that nothing of another cell (a NaN) comes in.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/exp_log.h"
#include "common/host_device.h"

namespace poh {

template <class A>
inline A attention_scale(int64_t d_head) {
  return static_cast<A>(1.0 / std::sqrt(static_cast<double>(d_head)));
}

// X: a number, or a SIMD vector of them. Never above 0 but for rounding; NaN stays.
template <class X>
POH_HOST_DEVICE X attention_exponential(X score, X max) {
  return exp_nonpositive(score - max);
}

template <class X>
POH_HOST_DEVICE X attention_score_gradient(X p, X dp, X mean) {
  return p * (dp - mean);
}

}  // namespace poh
