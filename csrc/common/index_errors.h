// What is said of an index that is out of range, the same from every backend. `at`: its place in the packed tensor.
#pragma once

#include "common/checks.h"

namespace poh {

// An element of an index tensor that is out of range.
struct Outside {
  int64_t at, value;
};

[[noreturn]] inline void cell_error(const char* name, int64_t at, int64_t value, int64_t cells) {
  index_error(name, "[", at, "] = ", value, " is out of range for ", cells, " cells");
}

[[noreturn]] inline void neighbor_error(int64_t at, int64_t value, int64_t cells, int64_t listed) {
  index_error("candidates[", at / listed / cells, ", ", at / listed % cells, ", ", at % listed, "] is ", value,
              ", but there are ", cells, " cells (-1 pads)");
}

}  // namespace poh
