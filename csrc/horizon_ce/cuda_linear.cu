// The parts of the linear multi-horizon cross-entropy that are not matrix products, on CUDA.
#include "horizon_ce/cuda_linear_kernels.h"
#include "horizon_ce/cuda_reduce.h"
#include "horizon_ce/ops.h"

namespace poh::cuda {
namespace {

Shape warps_for(const Tensor& on, int64_t items) { return {blocks_for(on, items, kRowThreads / kWarp), kRowThreads}; }

// The values of t in ascending order and where each stood; equal ones keep their order.
std::tuple<Tensor, Tensor> stable_sort(const Tensor& t) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(t),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(int64_t{-1}), torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

template <class T>
class CudaRows {
  using A = Accumulate<T>;

 public:
  CudaRows(const LinearLayer& layer, const LossCall<A>& call, A* terms, uint8_t* correct,
           const optional<Upstream<A>>& up)
      : on_(layer.hidden), c_(call), head_{data<T>(layer.hidden), data<T>(layer.weight), data<T>(layer.bias), layer.D},
        terms_(terms), correct_(correct), up_(up) {}

  // A number for each place: see cuda_linear_kernels.h.
  Tensor list() const {
    const int64_t count = c_.V > 0 ? c_.B * std::min(c_.L, c_.N) * c_.states : 0;
    const Tensor read = empty(on_, ScalarType::Long, count);
    if (count > 0) launch(&list_rows<A>, on_, warps_for(on_, count), c_, c_.L <= c_.N, count, data<int64_t>(read));
    return read;
  }

  void gather(const int64_t* read, int64_t m, T* state) const {
    launch(&gather_states<T, A>, on_, warps_for(on_, m), head_.hidden, read, m, head_.D, state);
  }

  void scatter(const T* state, const int64_t* read, int64_t m, T* out) const {
    launch(&scatter_states<T, A>, on_, warps_for(on_, m), state, read, m, head_.D, out);
  }

  void chunk(T* logits, T* gradient, const int64_t* read, int64_t m, const int* work = nullptr) const {
    const Tensor room = empty(on_, dtype_of<A>(), 4 * m);
    LogSumExp<A>* const lse = reinterpret_cast<LogSumExp<A>*>(data<A>(room));
    const HorizonCall<T, A> c{c_, logits, read, m, work};
    forward(on_, c, lse, terms_, correct_);
    if (up_) backward(on_, c, lse, *up_, gradient);
  }

  template <class Part>
  void add(A* sum, const Part* part, int64_t n) const {
    if (n == 0) return;
    launch(&accumulate<Part, A>, on_, Shape{blocks_for(on_, n, kRowThreads), kRowThreads}, sum, part, n);
  }

  // Does the others, too: none are returned, as the host does not know whether there are any.
  Tensor candidates(const Tensor& read, T* grad_hidden, A* grad_weight, A* grad_bias) const {
    const int64_t count = read.numel(), n = up_ ? count * c_.C : 0;
    const Tensor others = empty(on_, ScalarType::Long, count), classes = empty(on_, ScalarType::Int, n);
    const Tensor gradient = empty(on_, dtype_of<A>(), n), any = zeros(on_, ScalarType::Int, 1);
    const HorizonCall<T, A> c{c_, nullptr, data<int64_t>(read), count};
    const Entries<A> entries{up_ ? data<int32_t>(classes) : nullptr, up_ ? data<A>(gradient) : nullptr};
    launch(&candidate_rows<T, A>, on_, warps_for(on_, count), c, head_, up_.value_or(Upstream<A>{}), terms_, correct_,
           data<int64_t>(others), data<int>(any), entries, grad_hidden);
    const bool of_classes = grad_weight != nullptr || grad_bias != nullptr;
    const Shape by_class{blocks_for(on_, c_.V, 1), kClassThreads};
    if (n > 0 && of_classes) {
      const auto [sorted, entry] = stable_sort(classes);
      launch(&sum_entries<T, A>, on_, by_class, head_, data<const int64_t>(read), c_.V, c_.C, n,
             data<const int32_t>(sorted), data<const int64_t>(entry), data<const A>(gradient), grad_weight, grad_bias);
    }
    const int64_t length = std::min(count, chunk_rows(c_.V * static_cast<int64_t>(sizeof(T))));
    const Tensor logits = empty(on_, on_.scalar_type(), length, c_.V);
    const Tensor slopes = empty(on_, on_.scalar_type(), up_ ? length : 0, c_.V);
    for (int64_t first = 0; first < count; first += length) {
      const int64_t m = std::min(length, count - first);
      const HorizonCall<T, A> part{c_, data<T>(logits), data<int64_t>(others) + first, m, data<int>(any)};
      launch(&dense_logits<T, A>, on_, warps_for(on_, m * c_.V), part, head_, data<T>(logits));
      chunk(data<T>(logits), data<T>(slopes), part.read, m, part.work);
      if (grad_hidden != nullptr) {
        launch(&dense_states<T, A>, on_, warps_for(on_, m), part, head_, data<const T>(slopes), grad_hidden);
      }
      if (of_classes) {
        launch(&dense_weights<T, A>, on_, by_class, part, head_, data<const T>(slopes), grad_weight, grad_bias);
      }
    }
    return empty(on_, ScalarType::Long, 0);
  }

 private:
  const Tensor& on_;
  const LossCall<A>& c_;
  const Head<T, A> head_;
  A* const terms_;
  uint8_t* const correct_;
  const optional<Upstream<A>>& up_;
};

struct CudaLinear : CudaLoss {
  template <class T>
  using Rows = CudaRows<T>;

  static constexpr bool kInPlace = false;

  static int64_t chunk_rows(int64_t row_bytes) { return cuda::chunk_rows(row_bytes); }
  static int64_t panel_rows(int64_t rows, int64_t) { return rows; }
  static Tensor large(const Tensor& like, ScalarType dtype, torch::headeronly::IntHeaderOnlyArrayRef sizes, bool zero) {
    return zero ? torch::stable::new_zeros(like, sizes, dtype) : torch::stable::new_empty(like, sizes, dtype);
  }
};

}  // namespace
}  // namespace poh::cuda

POH_CUDA_LIBRARY(m) {
  m.impl("horizon_linear_ce", TORCH_BOX(&poh::LinearLoss<poh::cuda::CudaLinear>::forward));
  m.impl("horizon_linear_ce_backward", TORCH_BOX(&poh::LinearLoss<poh::cuda::CudaLinear>::backward));
}
