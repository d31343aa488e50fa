// Argument checks with named errors. Shapes, dtypes and devices are checked once, in Python, for every
// backend; here stand the checks that need the data (index ranges) and the guards of direct torch.ops calls.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace poh {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// Python sees std::invalid_argument as ValueError and std::out_of_range as IndexError. Throw neither inside
// parallel_for: the C shim below it would turn them into RuntimeError. Record the offender, throw after.
template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (!ok) throw std::invalid_argument(message(parts...));
}

template <class... Parts>
[[noreturn]] void index_error(const Parts&... parts) {
  throw std::out_of_range(message(parts...));
}

inline void check_form(const Tensor& t, const char* name, ScalarType dtype, int64_t dim) {
  check(t.scalar_type() == dtype, name, " has the wrong dtype");
  check(t.dim() == dim, name, " must have ", dim, " dimensions, got ", t.dim());
}

// Of a tensor whose numbers the CPU reads in their order.
inline void check_tensor(const Tensor& t, const char* name, ScalarType dtype, int64_t dim) {
  check(t.is_cpu(), name, " must be on the CPU");
  check_form(t, name, dtype, dim);
  check(t.is_contiguous(), name, " must be contiguous");
}

// An element of an index tensor that is out of range.
struct Outside {
  int64_t at, value;
};

// columns: of a tensor of two dimensions, 0 of one.
[[noreturn]] inline void cell_error(const char* name, Outside bad, int64_t columns, int64_t cells) {
  const std::string at = columns == 0 ? message(bad.at) : message(bad.at / columns, ", ", bad.at % columns);
  index_error(name, "[", at, "] = ", bad.value, " is out of range for ", cells, " cells");
}

[[noreturn]] inline void neighbor_error(int64_t at, int64_t value, int64_t cells, int64_t listed) {
  index_error("candidates[", at / listed / cells, ", ", at / listed % cells, ", ", at % listed, "] is ", value,
              ", but there are ", cells, " cells (-1 pads)");
}

}  // namespace poh
