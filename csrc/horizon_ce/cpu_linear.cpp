// The parts of the linear multi-horizon cross-entropy that are not matrix products: poh_ext/ops/horizon_linear_ce.py
// forms the logits of some rows at a time and has them turned into terms, and in place into their gradient.
// Rows are numbered q = (b * N + row) * states + state, as in cpu_terms.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <memory>

#include "horizon_ce/cpu_arguments.h"
#include "horizon_ce/cpu_reduce.h"
#include "common/parallel.h"

namespace poh {
namespace {

const ScalarType kLong = ScalarType::Long;

// What is written: terms [B, L, K] and whether they are right.
template <class A>
struct Results {
  A* terms;
  uint8_t* correct;

  Results(const Asked& a, const Tensor& t, const optional<Tensor>& c) : terms(data<A>(t)), correct(data<uint8_t>(c)) {
    check_tensor(t, "terms", dtype_of<A>(), 3);
    check(t.numel() == a.B * a.L * a.K, "terms must be [B, L, K]");
    if (c) check_tensor(*c, "correct", ScalarType::Byte, 3);
    check(!c || c->numel() == t.numel(), "correct must be [B, L, K]");
  }
};

const int64_t* checked_rows(const Tensor& read, int64_t count) {
  check_tensor(read, "read", kLong, 1);
  const int64_t* q = data<int64_t>(read);
  for (int64_t j = 0; j < read.numel(); ++j) {
    if (q[j] < 0 || q[j] >= count) index_error("read[", j, "] is ", q[j], ", but there are ", count, " rows");
  }
  return q;
}

Tensor horizon_ce_read(Tensor targets, optional<Tensor> rows, optional<Tensor> candidates, int64_t n_rows,
                       int64_t n_classes, int64_t horizons, int64_t states, int64_t ignore_index) {
  check(targets.dim() == 2, "targets must have 2 dimensions, got ", targets.dim());
  const Call call({targets.size(0), n_rows, n_classes, horizons, states, false}, targets, rows, std::nullopt,
                  candidates, std::nullopt, 0, ignore_index, 0, 0);
  const Readers readers(call.asked);
  Tensor out = new_empty({static_cast<int64_t>(readers.read.size())}, kLong);
  std::copy(readers.read.begin(), readers.read.end(), data<int64_t>(out));
  return out;
}

Tensor horizon_ce_coefficients(Tensor terms, Tensor targets, optional<Tensor> rows, optional<Tensor> horizon_weights,
                               optional<Tensor> class_weight, int64_t n_rows, int64_t n_classes,
                               int64_t ignore_index, int64_t reduction) {
  check(terms.dim() == 3, "terms must have 3 dimensions, got ", terms.dim());
  const bool wide = terms.scalar_type() == ScalarType::Double;
  const Call call({targets.size(0), n_rows, n_classes, terms.size(2), 1, wide}, targets, rows, std::nullopt,
                  std::nullopt, class_weight, 0, ignore_index, 0, 0);
  const auto compute = [&]<class A>(A) {
    const A* w = data<A>(call.class_weight);
    return coefficients<A>(call.asked, horizon_weights, w, to_reduction(reduction));
  };
  return wide ? compute(double{}) : compute(float{});
}

std::tuple<Tensor, Tensor> horizon_ce_finish(Tensor terms, optional<Tensor> correct, Tensor each, Tensor targets,
                                             optional<Tensor> rows, optional<Tensor> class_weight, int64_t n_rows,
                                             int64_t n_classes, int64_t ignore_index, int64_t reduction) {
  check(terms.dim() == 3, "terms must have 3 dimensions, got ", terms.dim());
  const bool wide = terms.scalar_type() == ScalarType::Double;
  const Call call({targets.size(0), n_rows, n_classes, terms.size(2), 1, wide}, targets, rows, std::nullopt,
                  std::nullopt, class_weight, 0, ignore_index, 0, 0);
  const auto compute = [&]<class A>(A) {
    const Results<A> results(call.asked, terms, correct);
    check_tensor(each, "coefficients", terms.scalar_type(), 2);
    check(each.numel() == call.asked.L * call.asked.K, "coefficients must be [L, K]");
    const A* w = data<A>(call.class_weight);
    Tensor measured = measure<A>(call.asked, terms, results.correct, correct.has_value(), w);
    Tensor weighted = to_reduction(reduction) == Reduction::kNone ? torch::stable::clone(terms) : terms;
    return std::tuple<Tensor, Tensor>(reduce<A>(call.asked, weighted, each, to_reduction(reduction)), measured);
  };
  return wide ? compute(double{}) : compute(float{});
}

// logits [m, V] are those of the rows `read`; with `upstream` they become the gradient.
void horizon_ce_chunk(Tensor logits, Tensor read, Tensor targets, optional<Tensor> rows, optional<Tensor> valid,
                      optional<Tensor> candidates, optional<Tensor> class_weight, optional<Tensor> upstream,
                      Tensor each, Tensor terms, optional<Tensor> correct, int64_t n_rows, int64_t states,
                      double label_smoothing, int64_t ignore_index, double z_loss, double softcap) {
  check(logits.dim() == 2 && logits.is_contiguous(), "logits must be contiguous, with 2 dimensions");
  check(terms.dim() == 3, "terms must have 3 dimensions, got ", terms.dim());
  const int64_t V = logits.size(1);
  const bool wide = logits.scalar_type() == ScalarType::Double;
  const Call call({targets.size(0), n_rows, V, terms.size(2), states, wide}, targets, rows, valid, candidates,
                  class_weight, label_smoothing, ignore_index, z_loss, softcap);
  const int64_t count = call.asked.B * n_rows * states;
  const int64_t* q = checked_rows(read, count);
  check(read.numel() == logits.size(0), "read must name every row of logits");
  const Readers readers(call.asked);
  dispatch(logits.scalar_type(), "logits", [&]<class T>(T) {
    using A = Accumulate<T>;
    const Results<A> results(call.asked, terms, correct);
    const std::unique_ptr<LogSumExp<A>[]> lse(new LogSumExp<A>[2 * count]);
    const RowLoss<T> loss = call.row_loss<T>(readers, lse.get(), results.correct);
    optional<Coefficients<A>> coefficient;
    if (upstream) coefficient.emplace(call.asked, *upstream, each);
    T* z = data<T>(logits);
    parallel_blocks(
        read.numel(), rows_per_block(V), [] { return RowScratch<A>(); },
        [&](int64_t begin, int64_t end, RowScratch<A>& scratch) {
          for (int64_t j = begin; j < end; ++j) {
            const int64_t b = q[j] / (n_rows * states);
            loss.forward(q[j], z + j * V, results.terms + b * call.asked.L * call.asked.K, scratch);
            if (coefficient) loss.backward(q[j], z + j * V, z + j * V, *coefficient, scratch);
          }
        });
    return 0;
  });
}

// One horizon with candidates: only the logits of the candidates of the rows `read` are formed, hidden[q] . weight[c]
// + bias[c]. With `upstream`, writes grad_hidden[q] of these rows, and adds to grad_weight and grad_bias (in A), to those
// of the three that are given.
void horizon_ce_candidates(Tensor hidden, Tensor weight, optional<Tensor> bias, Tensor read, Tensor targets,
                           optional<Tensor> rows, Tensor candidates, optional<Tensor> class_weight,
                           optional<Tensor> upstream, Tensor each, Tensor terms, optional<Tensor> correct,
                           optional<Tensor> grad_hidden, optional<Tensor> grad_weight, optional<Tensor> grad_bias,
                           int64_t n_rows, double label_smoothing, int64_t ignore_index, double z_loss,
                           double softcap) {
  check(hidden.dim() == 2 && hidden.is_contiguous() && weight.dim() == 2 && weight.is_contiguous(),
        "hidden and weight must be contiguous, with 2 dimensions");
  const int64_t V = weight.size(0), D = weight.size(1), C = candidates.size(2), m = read.numel();
  const bool wide = hidden.scalar_type() == ScalarType::Double;
  const Call call({targets.size(0), n_rows, V, 1, 1, wide}, targets, rows, std::nullopt, candidates, class_weight,
                  label_smoothing, ignore_index, z_loss, softcap);
  check(hidden.size(0) == call.asked.B * n_rows && hidden.size(1) == D, "hidden must be [B * N, D]");
  check(weight.scalar_type() == hidden.scalar_type(), "weight must have the dtype of hidden");
  const int64_t* q = checked_rows(read, hidden.size(0));
  const Readers readers(call.asked);
  dispatch(hidden.scalar_type(), "hidden", [&]<class T>(T) {
    using A = Accumulate<T>;
    const Results<A> results(call.asked, terms, correct);
    const std::unique_ptr<LogSumExp<A>[]> lse(new LogSumExp<A>[2 * hidden.size(0)]);
    const RowLoss<T> loss = call.row_loss<T>(readers, lse.get(), results.correct);
    optional<Coefficients<A>> coefficient;
    if (upstream) coefficient.emplace(call.asked, *upstream, each);
    const T *h = data<T>(hidden), *w = data<T>(weight), *shift = data<T>(bias);
    T* gh = data<T>(grad_hidden);
    // For the gradient of weight: the class of each candidate of each row (-1: none) and the gradient of its logit.
    const bool of_classes = upstream && (grad_weight || grad_bias);
    std::vector<int32_t> classes(of_classes ? m * C : 0, -1);
    std::vector<A> gradient(of_classes ? m * C : 0);
    struct Own {
      RowScratch<A> row;
      std::vector<A> h, w, g;
    };
    parallel_blocks(
        m, 32, [D] { return Own{{}, std::vector<A>(D), std::vector<A>(D), std::vector<A>(D)}; },
        [&](int64_t begin, int64_t end, Own& own) {
          for (int64_t j = begin; j < end; ++j) {
            RowScratch<A>& s = own.row;
            if (!loss.prepare(q[j], s).masked) continue;
            const A* x = widen(h + q[j] * D, own.h.data(), D);
            Allowed<A>& some = s.allowed;
            some.pad();
            for (int64_t c = 0; c < some.n; ++c) {
              const int64_t v = some.classes[c];
              some.logits[c] = row_dot(x, widen(w + v * D, own.w.data(), D), D);
              if (shift != nullptr) some.logits[c] += static_cast<A>(shift[v]);
            }
            if (softcap != 0) soft_cap(some.logits.data(), some.n, static_cast<A>(softcap));
            loss.forward_compact(q[j], results.terms + s.b * call.asked.L, s);
            if (!coefficient) continue;
            loss.masked_backward(q[j], *coefficient, s);
            std::fill(own.g.begin(), own.g.end(), A{0});
            for (int64_t c = 0; c < some.n; ++c) {
              A g = some.gradient[c];
              if (softcap != 0) g *= loss.cap_slope(some.logits[c]);
              if (of_classes) classes[j * C + c] = some.classes[c], gradient[j * C + c] = g;
              if (gh != nullptr) add_scaled(own.g.data(), widen(w + some.classes[c] * D, own.w.data(), D), g, D);
            }
            if (gh != nullptr) convert(own.g.data(), gh + q[j] * D, D);
          }
        });
    if (!of_classes) return 0;
    // Per class, the rows that have it as a candidate, in their order: no races, and always the same sum.
    std::vector<int64_t> start(V + 1, 0), place(classes.size());
    for (int32_t v : classes) start[v + 1] += v >= 0 ? 1 : 0;
    start[0] = 0;
    for (int64_t v = 0; v < V; ++v) start[v + 1] += start[v];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (size_t e = 0; e < classes.size(); ++e) {
      if (classes[e] >= 0) place[next[classes[e]]++] = static_cast<int64_t>(e);
    }
    A *gw = data<A>(grad_weight), *gb = data<A>(grad_bias);
    parallel_blocks(
        V, 8, [D] { return std::vector<A>(D); },
        [&](int64_t begin, int64_t end, std::vector<A>& own) {
          for (int64_t v = begin; v < end; ++v) {
            for (int64_t p = start[v]; p < start[v + 1]; ++p) {
              const int64_t e = place[p];
              if (gw != nullptr) add_scaled(gw + v * D, widen(h + q[e / C] * D, own.data(), D), gradient[e], D);
              if (gb != nullptr) gb[v] += gradient[e];
            }
          }
        });
    return 0;
  });
}

// Zeros of the shape and dtype of `like`, in huge pages where large.
Tensor large_zeros(Tensor like) {
  Tensor out = new_large(like);
  const int64_t bytes = out.numel() * static_cast<int64_t>(out.element_size());
  char* at = data<char>(out);
  parallel(bytes, 1 << 20, [at](int64_t begin, int64_t end) { std::memset(at + begin, 0, end - begin); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(poh_ext, CPU, m) {
  m.impl("horizon_ce_read", TORCH_BOX(&horizon_ce_read));
  m.impl("horizon_ce_coefficients", TORCH_BOX(&horizon_ce_coefficients));
  m.impl("horizon_ce_finish", TORCH_BOX(&horizon_ce_finish));
  m.impl("horizon_ce_chunk", TORCH_BOX(&horizon_ce_chunk));
  m.impl("horizon_ce_candidates", TORCH_BOX(&horizon_ce_candidates));
  m.impl("large_zeros", TORCH_BOX(&large_zeros));
}

}  // namespace poh
