// Which rows of logits the terms of the multi-horizon cross-entropy read.
#pragma once

#include <cstdint>
#include <vector>

#include "horizon_ce/math.h"

namespace poh {

// The terms: position i of batch b at horizon k = 1..K is asked for a class, and reads a row.
struct Asked {
  int64_t B, N, L, K;
  int64_t states;  // logits per row: 1, or K when every horizon has its own
  const int64_t* targets;
  const int64_t* rows;  // null: position i reads row i
  int64_t ignore;

  // -1 where there is no term.
  int64_t target(int64_t b, int64_t i, int64_t k) const {
    if (i + k >= L) return -1;
    const int64_t y = targets[b * L + i + k];
    return y == ignore ? -1 : y;
  }
  int64_t row(int64_t b, int64_t i) const {
    if (rows == nullptr) return i;
    const int64_t r = rows[b * L + i];
    return skips_row(r, ignore) ? -1 : r;
  }
};

// For each row of logits q = (b * N + row) * states + state: the positions that have a term there, ascending.
struct Readers {
  std::vector<int64_t> start;     // [B * N * states + 1] into position
  std::vector<int64_t> position;  // i
  std::vector<int64_t> read;      // the q with at least one position, ascending

  explicit Readers(const Asked& a);
};

// Raises IndexError for the first target, row or candidate out of range.
void check_indices(const Asked& asked, const int64_t* candidates, int64_t C, int64_t V);

}  // namespace poh
