// The parts of the linear multi-horizon cross-entropy that are not matrix products, on the CPU.
#include <torch/csrc/stable/library.h>

#include <memory>

#include "common/cpu.h"
#include "horizon_ce/cpu_row_loss.h"
#include "horizon_ce/cpu_terms.h"
#include "horizon_ce/ops.h"

namespace poh {
namespace {

template <class T>
class CpuRows {
  using A = Accumulate<T>;

 public:
  CpuRows(const LinearLayer& layer, const LossCall<A>& call, A* terms, uint8_t* correct,
          const optional<Upstream<A>>& up)
      : layer_(layer), c_(call), readers_(call), lse_(new LogSumExp<A>[2 * call.B * call.N * call.states]),
        loss_{call, readers_, lse_.get(), lse_.get() + call.B * call.N * call.states, correct}, terms_(terms),
        up_(up) {}

  Tensor list() const {
    const Tensor out = empty(layer_.hidden, ScalarType::Long, readers_.read.size());
    std::copy(readers_.read.begin(), readers_.read.end(), data<int64_t>(out));
    return out;
  }

  void gather(const int64_t* read, int64_t m, T* state) const {
    const T* const hidden = data<T>(layer_.hidden);
    each_row(m, [&](int64_t j) { std::copy_n(hidden + read[j] * D(), D(), state + j * D()); });
  }

  void scatter(const T* state, const int64_t* read, int64_t m, T* out) const {
    each_row(m, [&](int64_t j) { std::copy_n(state + j * D(), D(), out + read[j] * D()); });
  }

  // The gradient takes the place of the logits.
  void chunk(T* logits, T*, const int64_t* read, int64_t m) const {
    const int64_t rows = c_.N * c_.states, places = c_.L * c_.K;
    parallel_blocks(
        m, rows_per_block(c_.V), [] { return RowScratch<A>(); },
        [&](int64_t begin, int64_t end, RowScratch<A>& scratch) {
          for (int64_t j = begin; j < end; ++j) {
            T* const z = logits + j * c_.V;
            loss_.forward(read[j], z, terms_ + read[j] / rows * places, scratch);
            if (up_) loss_.backward(read[j], z, z, *up_, scratch);
          }
        });
  }

  template <class Part>
  static void add(A* sum, const Part* part, int64_t n) {
    parallel(n, 1 << 15, [&](int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) sum[i] += static_cast<A>(part[i]);
    });
  }

  // Of the rows that list candidates, only the logits of these are formed, hidden[q] . weight[v] + bias[v]. Writes
  // grad_hidden[q] of these rows, and adds to grad_weight and grad_bias, those of the three that are not null.
  Tensor candidates(const Tensor& read, T* grad_hidden, A* grad_weight, A* grad_bias) const {
    std::vector<int64_t> q, others;
    for (int64_t i = 0; i < read.numel(); ++i) {
      const int64_t row = data<int64_t>(read)[i], *list = c_.candidates + row * c_.C;
      (std::any_of(list, list + c_.C, [](int64_t v) { return v >= 0; }) ? q : others).push_back(row);
    }
    const int64_t m = static_cast<int64_t>(q.size()), C = c_.C;
    const T *h = data<T>(layer_.hidden), *w = data<T>(layer_.weight), *shift = data<T>(layer_.bias);
    // For the gradient of weight: the class of each candidate of each row (-1: none) and the gradient of its logit.
    const bool of_classes = grad_weight != nullptr || grad_bias != nullptr;
    std::vector<int32_t> classes(of_classes ? m * C : 0, -1);
    std::vector<A> gradient(of_classes ? m * C : 0);
    struct Own {
      RowScratch<A> row;
      std::vector<A> h, w, g;
    };
    parallel_blocks(
        m, 32, [D = D()] { return Own{{}, std::vector<A>(D), std::vector<A>(D), std::vector<A>(D)}; },
        [&](int64_t begin, int64_t end, Own& own) {
          for (int64_t j = begin; j < end; ++j) {
            RowScratch<A>& s = own.row;
            loss_.prepare(q[j], s);
            const A* x = widen(h + q[j] * D(), own.h.data(), D());
            Allowed<A>& some = s.allowed;
            some.pad();
            for (int64_t i = 0; i < some.n; ++i) {
              const int64_t v = some.classes[i];
              some.logits[i] = row_dot(x, widen(w + v * D(), own.w.data(), D()), D());
              if (shift != nullptr) some.logits[i] += static_cast<A>(shift[v]);
            }
            if (c_.softcap != 0) soft_cap(some.logits.data(), some.n, c_.softcap);
            loss_.forward_compact(q[j], terms_ + s.b * c_.L, s);
            if (!up_) continue;
            loss_.masked_backward(q[j], *up_, s);
            std::fill(own.g.begin(), own.g.end(), A{0});
            for (int64_t i = 0; i < some.n; ++i) {
              const A g = some.gradient[i] * c_.slope(some.logits[i]);
              if (of_classes) classes[j * C + i] = some.classes[i], gradient[j * C + i] = g;
              if (grad_hidden == nullptr) continue;
              add_scaled(own.g.data(), widen(w + some.classes[i] * D(), own.w.data(), D()), g, D());
            }
            if (grad_hidden != nullptr) convert(own.g.data(), grad_hidden + q[j] * D(), D());
          }
        });
    if (of_classes) add_classes(q, classes, gradient, grad_weight, grad_bias);
    const Tensor left = empty(read, ScalarType::Long, others.size());
    std::copy(others.begin(), others.end(), data<int64_t>(left));
    return left;
  }

 private:
  const LinearLayer& layer_;
  const LossCall<A>& c_;
  const Readers readers_;
  const std::unique_ptr<LogSumExp<A>[]> lse_;
  const RowLoss<T> loss_;
  A* const terms_;
  const optional<Upstream<A>>& up_;

  int64_t D() const { return layer_.D; }

  template <class F>
  void each_row(int64_t m, const F& f) const {
    parallel(m, std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(D(), 1)), [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) f(j);
    });
  }

  // Per class, over the rows q that have it as a candidate, in their order: no races, and always the same sum.
  void add_classes(const std::vector<int64_t>& q, const std::vector<int32_t>& classes, const std::vector<A>& gradient,
                   A* grad_weight, A* grad_bias) const {
    std::vector<int64_t> start(c_.V + 1, 0), place(classes.size());
    for (int32_t v : classes) start[v + 1] += v >= 0 ? 1 : 0;
    start[0] = 0;
    for (int64_t v = 0; v < c_.V; ++v) start[v + 1] += start[v];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (size_t e = 0; e < classes.size(); ++e) {
      if (classes[e] >= 0) place[next[classes[e]]++] = static_cast<int64_t>(e);
    }
    const T* const h = data<T>(layer_.hidden);
    parallel_blocks(
        c_.V, 8, [D = D()] { return std::vector<A>(D); },
        [&](int64_t begin, int64_t end, std::vector<A>& own) {
          for (int64_t v = begin; v < end; ++v) {
            for (int64_t p = start[v]; p < start[v + 1]; ++p) {
              const int64_t e = place[p];
              if (grad_weight != nullptr) {
                add_scaled(grad_weight + v * D(), widen(h + q[e / c_.C] * D(), own.data(), D()), gradient[e], D());
              }
              if (grad_bias != nullptr) grad_bias[v] += gradient[e];
            }
          }
        });
  }
};

struct CpuLinear : CpuLoss {
  template <class T>
  using Rows = CpuRows<T>;

  static constexpr bool kInPlace = true;

  // Logits of a chunk: 8 MB stay in the caches between product and loss, but fewer than 512 rows make slow products.
  static int64_t chunk_rows(int64_t row_bytes) {
    return std::max<int64_t>((1 << 23) / std::max<int64_t>(row_bytes, 1), 512);
  }

  // Rows of a product that is then added to a sum: 2 MB stay in the caches.
  static int64_t panel_rows(int64_t rows, int64_t row_bytes) {
    return std::min(rows, std::max<int64_t>((1 << 21) / std::max<int64_t>(row_bytes, 1), 64));
  }

  static Tensor large(const Tensor&, ScalarType dtype, torch::headeronly::IntHeaderOnlyArrayRef sizes, bool zero) {
    const Tensor out = in_huge_pages(new_empty(sizes, dtype));
    char* const at = data<char>(out);
    parallel(zero ? out.numel() * static_cast<int64_t>(out.element_size()) : 0, 1 << 20,
             [at](int64_t begin, int64_t end) { std::memset(at + begin, 0, end - begin); });
    return out;
  }
};

}  // namespace
}  // namespace poh

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) {
  m.impl("horizon_linear_ce", TORCH_BOX(&poh::LinearLoss<poh::CpuLinear>::forward));
  m.impl("horizon_linear_ce_backward", TORCH_BOX(&poh::LinearLoss<poh::CpuLinear>::backward));
}
