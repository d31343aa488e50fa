// What is said of an index that is out of range, the same from every backend. `at`: its place in the packed tensor.
#pragma once

#include <string>

#include "common/checks.h"
#include "horizon_ce/math.h"

namespace poh {

[[noreturn]] inline void target_error(int64_t at, int64_t value, int64_t L, int64_t classes, int64_t ignore) {
  index_error("targets[", at / L, ", ", at % L, "] is ", value, ", but there are ", classes,
              " classes (ignore_index is ", ignore, ")");
}

[[noreturn]] inline void row_error(int64_t at, int64_t value, int64_t L, int64_t n_rows, int64_t ignore) {
  const int64_t skipping = skipping_row(ignore);
  const std::string also = skipping == -1 ? "" : ", and so does the ignore_index " + std::to_string(skipping);
  index_error("rows[", at / L, ", ", at % L, "] is ", value, ", but there are ", n_rows, " rows (-1 skips a position",
              also, ")");
}

[[noreturn]] inline void candidate_error(int64_t at, int64_t value, int64_t n_rows, int64_t C, int64_t classes) {
  index_error("candidates[", at / C / n_rows, ", ", at / C % n_rows, ", ", at % C, "] is ", value,
              ", but there are ", classes, " classes (-1 pads)");
}

[[noreturn]] inline void cell_error(const char* name, int64_t at, int64_t value, int64_t cells) {
  index_error(name, "[", at, "] = ", value, " is out of range for ", cells, " cells");
}

[[noreturn]] inline void neighbor_error(int64_t at, int64_t value, int64_t cells, int64_t listed) {
  index_error("candidates[", at / listed / cells, ", ", at / listed % cells, ", ", at % listed, "] is ", value,
              ", but there are ", cells, " cells (-1 pads)");
}

}  // namespace poh
