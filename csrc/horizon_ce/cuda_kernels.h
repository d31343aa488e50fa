// Terms and gradient of rows of logits, for the dense and the linear form. A warp works on a row of up to 1024 classes,
// a block of 8 warps on a longer one. Forward: the row is read once, online log-sum-exp, for all horizons. Backward: one
// read and one write. Which positions read a row is found by looking through rows[b] (nothing to build, nothing to
// synchronise); each row has one owner, so that duplicates need no atomics and every result is the same in every run.
#pragma once

#include "horizon_ce/cuda_terms.h"

namespace poh::cuda {

// Writes the term of every (i, k) that reads one of the rows, and to lse [2, count] what backward() needs: that of all
// horizons, and that of horizon 1 under a mask. correct may be null.
template <class T, class A>
void forward(const Tensor& on, const HorizonCall<T, A>& c, LogSumExp<A>* lse, A* terms, uint8_t* correct);

// Writes all of grad [count, V]: zeros where no term reads the row. It must not overlap the logits.
template <class T, class A>
void backward(const Tensor& on, const HorizonCall<T, A>& c, const LogSumExp<A>* lse, const Upstream<A>& up, T* grad);

}  // namespace poh::cuda
