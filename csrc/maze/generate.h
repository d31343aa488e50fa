// Maze generators, one maze at a time, with scratch from the caller. Which draw decides what is written in
// poh_ext/reference/maze_generate.py, which gives the same mazes bit for bit.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/philox.h"
#include "maze/grid.h"

namespace poh {

enum MazeAlgorithm { kDfs, kWilson, kPrim, kKruskal, kPercolation, kObstacles };

// What all mazes of a call share. The tables have N entries each unless said otherwise.
struct GridTables {
  Grid grid;
  const uint8_t* inside;   // directions that stay in the grid
  const int32_t* next;     // [N, 4] the cell there; the cell itself where that is outside
  const int32_t* wall;     // [walls] cell * 4 + direction: first those below a cell, then those to its right
  const uint8_t* pick;     // [16, 4] the k-th set bit of a mask
  const int32_t* step;     // [4] cell index change of a move
};

// Room for one maze, in elements.
struct MazeScratch {
  uint32_t* words;   // 4 * ceil((walls + 1) / 4), at least 4 * ceil((N + 1) / 4)
  int32_t* list;     // max(walls, N) + 4
  uint64_t* stack;   // N
  uint8_t* flags;    // N + 2 * width + 2
};

POH_HOST_DEVICE int32_t philox_blocks(int32_t words) { return (words + 3) / 4; }

// Bits of unvisited neighbours, kept for every cell: a visit clears one bit in each cell around. The array has
// `width` spare bytes at both ends, and at a row's ends the bit cleared next door is clear anyway.
struct Unvisited {
  uint8_t* at;
  int32_t width;

  POH_HOST_DEVICE void start(const GridTables& t, uint8_t* flags) {
    width = t.grid.width;
    at = flags + width;
    for (int32_t c = 0; c < t.grid.cells(); ++c) at[c] = t.inside[c];
  }
  POH_HOST_DEVICE void visit(int32_t cell) {
    at[cell - width] &= static_cast<uint8_t>(~2u);
    at[cell + width] &= static_cast<uint8_t>(~1u);
    at[cell - 1] &= static_cast<uint8_t>(~8u);
    at[cell + 1] &= static_cast<uint8_t>(~4u);
  }
};

POH_HOST_DEVICE void maze_dfs(const GridTables& t, uint64_t seed, uint64_t index, const MazeScratch& s, uint8_t* out) {
  const int32_t n = t.grid.cells();
  philox_words(kStreamGenerate, index, seed, philox_blocks(n), s.words);
  Unvisited unvisited;
  unvisited.start(t, s.flags);
  int32_t cell = below(s.words[0], n), depth = 0;
  for (int32_t c = 0; c < n; ++c) out[c] = 0;
  unvisited.visit(cell);
  for (int32_t v = 1; v < n; ++v) {
    uint32_t choices = unvisited.at[cell];
    while (choices == 0) choices = unvisited.at[cell = s.list[--depth]];
    const int direction = t.pick[4 * choices + below(s.words[v], count_bits(choices))];
    s.list[depth++] = cell;
    out[cell] |= static_cast<uint8_t>(1u << direction);
    cell += t.step[direction];
    out[cell] = static_cast<uint8_t>(1u << (direction ^ 1));
    unvisited.visit(cell);
  }
}

// Each cell's stack of random directions is a word of 16, consumed from the low end, below a sentinel bit.
POH_HOST_DEVICE void maze_wilson(const GridTables& t, uint64_t seed, uint64_t index, const MazeScratch& s,
                                 uint8_t* out) {
  const int32_t n = t.grid.cells(), blocks = philox_blocks(n);
  const int32_t root = (t.grid.height / 2) * t.grid.width + t.grid.width / 2;
  philox_words(kStreamGenerate, index, seed, blocks, s.words);
  uint8_t* in_tree = s.flags;
  int32_t* layer = s.list;
  for (int32_t c = 0; c < n; ++c) {
    s.stack[c] = uint64_t{1} << 32 | s.words[c];
    layer[c] = 0;
    in_tree[c] = 0;
    out[c] = 0;
  }
  in_tree[root] = 1;
  for (int32_t first = 0; first < n; ++first) {
    int32_t cell = first;
    while (!in_tree[cell]) {
      uint64_t top = s.stack[cell];
      if (top == 1) {
        const uint32_t word = static_cast<uint32_t>(cell) + static_cast<uint32_t>(++layer[cell] * 4 * blocks);
        top = uint64_t{1} << 32 | philox_word(kStreamGenerate, index, seed, word);
      }
      // The word itself went to the stack: its place holds the arrow last followed, the way out of the cell.
      s.words[cell] = static_cast<uint32_t>(top & 3);
      s.stack[cell] = top >> 2;
      cell = t.next[4 * cell + static_cast<int32_t>(top & 3)];
    }
    for (cell = first; !in_tree[cell];) {
      const int direction = static_cast<int>(s.words[cell]);
      in_tree[cell] = 1;
      out[cell] |= static_cast<uint8_t>(1u << direction);
      cell += t.step[direction];
      out[cell] |= static_cast<uint8_t>(1u << (direction ^ 1));
    }
  }
}

POH_HOST_DEVICE void maze_prim(const GridTables& t, uint64_t seed, uint64_t index, const MazeScratch& s, uint8_t* out) {
  const int32_t n = t.grid.cells();
  philox_words(kStreamGenerate, index, seed, philox_blocks(t.grid.walls() + 1), s.words);
  Unvisited unvisited;
  unvisited.start(t, s.flags);
  int32_t* frontier = s.list;
  int32_t size = 0, cell = below(s.words[0], n);
  for (int32_t c = 0; c < n; ++c) out[c] = 0;
  for (int32_t joined = 1, draw = 1;; ++joined) {
    unvisited.visit(cell);
    const uint32_t choices = unvisited.at[cell];
    for (int d = 0; d < 4; ++d) {  // always written, kept only if the bit is set: no branch to mispredict
      frontier[size] = 4 * cell + d;
      size += choices >> d & 1;
    }
    if (joined == n) return;
    int32_t wall;
    do {
      const int32_t place = below(s.words[draw++], size);
      wall = frontier[place];
      frontier[place] = frontier[--size];
    } while (!(unvisited.at[wall >> 2] >> (wall & 3) & 1));
    const int direction = wall & 3;
    cell = wall >> 2;
    out[cell] |= static_cast<uint8_t>(1u << direction);
    cell += t.step[direction];
    out[cell] |= static_cast<uint8_t>(1u << (direction ^ 1));
  }
}

POH_HOST_DEVICE int32_t find_part(int32_t* parent, int32_t cell) {
  while (parent[cell] != cell) cell = parent[cell] = parent[parent[cell]];
  return cell;
}

POH_HOST_DEVICE void maze_kruskal(const GridTables& t, uint64_t seed, uint64_t index, const MazeScratch& s,
                                  uint8_t* out) {
  const int32_t n = t.grid.cells(), walls = t.grid.walls();
  philox_words(kStreamGenerate, index, seed, philox_blocks(walls), s.words);
  int32_t *order = s.list, *parent = reinterpret_cast<int32_t*>(s.stack);
  for (int32_t w = 0; w < walls; ++w) order[w] = t.wall[w];
  for (int32_t c = 0; c < n; ++c) {
    parent[c] = c;
    out[c] = 0;
  }
  for (int32_t w = 0, left = n - 1; left > 0; ++w) {
    const int32_t place = w + below(s.words[w], walls - w), wall = order[place];
    order[place] = order[w];
    const int direction = wall & 3;
    const int32_t cell = wall >> 2, to = cell + t.step[direction];
    const int32_t a = find_part(parent, cell), b = find_part(parent, to);
    if (a == b) continue;
    parent[b] = a;
    out[cell] |= static_cast<uint8_t>(1u << direction);
    out[to] |= static_cast<uint8_t>(1u << (direction ^ 1));
    --left;
  }
}

// The range of the share of walls or cells, in 2^-32, from which each maze draws its own.
struct Share {
  int64_t low, high;

  // One bit a wall then decides, instead of 32.
  POH_HOST_DEVICE bool half() const { return low == int64_t{1} << 31 && high == low; }
};

// Which of `count` walls or cells are: chosen(i) after a call of this, which draws the share by draw 0 and i by draw
// 1 + i. s.words has room for 1 + count.
struct Chosen {
  const uint32_t* words;
  int64_t share;

  POH_HOST_DEVICE Chosen(uint64_t seed, uint64_t index, const Share& range, int32_t count, const MazeScratch& s)
      : words(s.words) {
    philox_words(kStreamShare, index, seed, philox_blocks(1 + count), s.words);
    share = range.low + ((range.high - range.low) * int64_t{words[0] >> 2} >> 30);
  }
  POH_HOST_DEVICE uint32_t operator()(int32_t i) const { return words[1 + i] < share; }
};

// The walls that are chosen are opened.
POH_HOST_DEVICE void maze_braid(const GridTables& t, uint64_t seed, uint64_t index, const Share& share,
                                const MazeScratch& s, uint8_t* out) {
  const int32_t walls = t.grid.walls();
  const Chosen chosen(seed, index, share, walls, s);
  for (int32_t w = 0; w < walls; ++w) {
    const int direction = t.wall[w] & 3;
    const int32_t cell = t.wall[w] >> 2;
    out[cell] |= static_cast<uint8_t>(chosen(w) << direction);
    out[cell + t.step[direction]] |= static_cast<uint8_t>(chosen(w) << (direction ^ 1));
  }
}

// The cells that are chosen are blocked.
POH_HOST_DEVICE void maze_obstacles(const GridTables& t, uint64_t seed, uint64_t index, const Share& share,
                                    const MazeScratch& s, uint8_t* out) {
  constexpr uint8_t kBlocked = 16;
  const int32_t n = t.grid.cells();
  const Chosen blocked(seed, index, share, n, s);
  for (int32_t c = 0; c < n; ++c) out[c] = blocked(c) ? kBlocked : 0;
  // Without branches, which nobody could foresee.
  for (int32_t c = 0; c < n; ++c) {
    const int32_t below = t.next[4 * int64_t{c} + 1], right = t.next[4 * int64_t{c} + 3];  // c itself at an edge
    const uint32_t down = t.inside[c] >> 1 & ~((out[c] | out[below]) / kBlocked) & 1;
    const uint32_t along = t.inside[c] >> 3 & ~((out[c] | out[right]) / kBlocked) & 1;
    out[below] |= static_cast<uint8_t>(down);
    out[right] |= static_cast<uint8_t>(along << 2);
    out[c] |= static_cast<uint8_t>(down << 1 | along << 3);
  }
}

POH_HOST_DEVICE void maze_percolation(const GridTables& t, uint64_t seed, uint64_t index, const Share& share,
                                      const MazeScratch& s, uint8_t* out) {
  const int32_t n = t.grid.cells(), walls = t.grid.walls();
  if (!share.half()) {
    const Chosen stands(seed, index, share, walls, s);
    for (int32_t c = 0; c < n; ++c) out[c] = 0;
    for (int32_t w = 0; w < walls; ++w) {
      const int direction = t.wall[w] & 3;
      const int32_t cell = t.wall[w] >> 2;
      out[cell] |= static_cast<uint8_t>((1 - stands(w)) << direction);
      out[cell + t.step[direction]] |= static_cast<uint8_t>((1 - stands(w)) << (direction ^ 1));
    }
    return;
  }
  philox_words(kStreamGenerate, index, seed, philox_blocks((walls + 31) / 32), s.words);
  for (int32_t c = 0; c < n; ++c) out[c] = 0;
  for (int32_t w = 0; w < walls; ++w) {
    const uint32_t open = s.words[w / 32] >> (w % 32) & 1;
    const int direction = t.wall[w] & 3;
    const int32_t cell = t.wall[w] >> 2;
    out[cell] |= static_cast<uint8_t>(open << direction);
    out[cell + t.step[direction]] |= static_cast<uint8_t>(open << (direction ^ 1));
  }
}

POH_HOST_DEVICE void make_maze(MazeAlgorithm algorithm, const GridTables& t, uint64_t seed, uint64_t index,
                               const Share& share, const MazeScratch& s, uint8_t* out) {
  switch (algorithm) {
    case kDfs: maze_dfs(t, seed, index, s, out); break;
    case kWilson: maze_wilson(t, seed, index, s, out); break;
    case kPrim: maze_prim(t, seed, index, s, out); break;
    case kKruskal: maze_kruskal(t, seed, index, s, out); break;
    case kPercolation: return maze_percolation(t, seed, index, share, s, out);
    case kObstacles: return maze_obstacles(t, seed, index, share, s, out);
  }
  if (share.high > 0) maze_braid(t, seed, index, share, s, out);
}

}  // namespace poh
