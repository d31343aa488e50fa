"""PyTorch maze generators: vectorised over the batch, one loop over steps. csrc/maze/generate.h is the same
in C++, one maze at a time; each draw is taken from the place in the Philox stream that is written here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from poh_ext.reference.philox import STREAM_GENERATE, STREAM_SHARE, below, words

__all__ = ["BLOCKED", "generate_mazes", "neighbor_table"]

BLOCKED = 16  # the bit of a blocked cell, in what is generated
_BITS = (1, 2, 4, 8)  # up, down, left, right
_OPPOSITE = (2, 1, 8, 4)
_CHUNK = 8192  # mazes in step with each other; bounds the memory for draws


def neighbor_table(height: int, width: int, device: torch.device) -> Tensor:
    """Cell above, below, left and right of each cell, H*W where there is none -> int64 [H*W, 4]."""
    n = height * width
    cell = torch.arange(n, device=device)
    row, column = cell // width, cell % width
    outside = torch.full_like(cell, n)
    return torch.stack(
        (
            torch.where(row > 0, cell - width, outside),
            torch.where(row < height - 1, cell + width, outside),
            torch.where(column > 0, cell - 1, outside),
            torch.where(column < width - 1, cell + 1, outside),
        ),
        dim=1,
    )


def _edges(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All walls between cells, first those below a cell, then those to its right -> (cell, direction), each [E]."""
    cell = torch.arange(height * width, device=device).view(height, width)
    down, right = cell[:-1].flatten(), cell[:, :-1].flatten()
    direction = torch.cat((torch.full_like(down, 1), torch.full_like(right, 3)))
    return torch.cat((down, right)), direction


def _kth(available: Tensor, k: Tensor) -> Tensor:
    """Place of the k-th set entry (from 0) in each row of bool [B, 4]."""
    return ((available.cumsum(1) - 1 == k[:, None]) & available).to(torch.uint8).argmax(1)


def _carve(passages: Tensor, rows: Tensor, cell: Tensor, direction: Tensor, to: Tensor, where: Tensor) -> None:
    """Open the wall between `cell` and `to` in each row where `where` holds; passages int64 [B, N + 1]."""
    bits = torch.tensor((_BITS, _OPPOSITE), device=cell.device)
    passages[rows, cell] |= torch.where(where, bits[0][direction], 0)
    passages[rows, to] |= torch.where(where, bits[1][direction], 0)


def _dfs(indices: Tensor, seed: int, height: int, width: int) -> Tensor:
    """Draw 0: the start; draw v: the move that visits the v-th further cell."""
    batch, n = len(indices), height * width
    draws, table = words(seed, STREAM_GENERATE, indices, n), neighbor_table(height, width, indices.device)
    rows = torch.arange(batch, device=indices.device)
    cell = below(draws[:, 0], n)
    passages, parent = indices.new_zeros(batch, n + 1), cell[:, None].repeat(1, n + 1)
    visited = torch.zeros(batch, n + 1, dtype=torch.bool, device=indices.device)
    visited[:, n] = True
    visited[rows, cell] = True
    count = torch.ones_like(indices)
    for _ in range(2 * n - 3):  # n - 1 moves forward, at most n - 2 back before the last of them
        around = table[cell]
        available = ~visited.gather(1, around)
        choices = available.sum(1)
        forward = choices > 0
        draw = draws.gather(1, count.clamp(max=n - 1)[:, None])[:, 0]
        direction = _kth(available, below(draw, choices))
        to = torch.where(forward, around[rows, direction], n)
        _carve(passages, rows, cell, direction, to, forward)
        visited[rows, to] = True
        parent[rows, to] = cell
        count = count + forward
        cell = torch.where(forward, to, parent[rows, cell])
    return passages


def _wilson(indices: Tensor, seed: int, height: int, width: int) -> Tensor:
    """Wilson's algorithm as cycle popping: each cell has an endless stack of random directions; while the arrows on
    top close a cycle, pop it. Which tree is left does not depend on the order (Propp and Wilson 1998), so all
    cycles are popped at once here and C++ walks. Popping an arrow that leads out of the grid is a cycle of one.

    The root is the middle cell. Draw c + layer * 4 * ceil(N / 4) holds entries 16 * layer... of cell c's stack,
    two bits each from the lowest.
    """
    batch, n = len(indices), height * width
    table, root = neighbor_table(height, width, indices.device), (height // 2) * width + width // 2
    cells, blocks = torch.arange(n, device=indices.device), (n + 3) // 4
    inside = torch.where(table == n, cells[:, None], table)
    layers = [words(seed, STREAM_GENERATE, indices, n)]
    depth = indices.new_zeros(batch, n)
    while True:
        layer = depth >> 4
        while int(layer.max() if layer.numel() else 0) >= len(layers):
            layers.append(words(seed, STREAM_GENERATE, indices, n, first_block=blocks * len(layers)))
        draw = torch.stack(layers).gather(0, layer[None])[0]
        direction = (draw >> (2 * (depth & 15))) & 3
        to = inside[cells, direction]
        to[:, root] = root
        far = to
        for _ in range(n.bit_length()):
            far = far.gather(1, far)
        cyclic = torch.zeros_like(depth).scatter_(1, far, 1)
        cyclic[:, root] = 0
        if not cyclic.any():
            break
        depth += cyclic
    bits = torch.tensor((_BITS, _OPPOSITE), device=indices.device)
    arrow = cells != root
    passages = bits[0][direction] * arrow
    # Two arrows into one cell come from two sides, so their bits differ and a sum is an or.
    passages.scatter_add_(1, to, bits[1][direction] * arrow)
    return passages


def _prim(indices: Tensor, seed: int, height: int, width: int) -> Tensor:
    """Draw 0: the start; draw t: the place in the list of frontier walls of the t-th wall taken from it. The last
    of the list fills the gap. Walls join the list in the order up, down, left, right, when their first cell does.
    """
    batch, n = len(indices), height * width
    edges = 2 * n - height - width
    draws, table = words(seed, STREAM_GENERATE, indices, edges + 1), neighbor_table(height, width, indices.device)
    rows = torch.arange(batch, device=indices.device)
    passages = indices.new_zeros(batch, n + 1)
    visited = torch.zeros(batch, n + 1, dtype=torch.bool, device=indices.device)
    visited[:, n] = True
    frontier, size = indices.new_zeros(batch, edges + 1), torch.zeros_like(indices)

    def join(cell: Tensor, where: Tensor) -> None:
        visited[rows, torch.where(where, cell, n)] = True
        for direction in range(4):
            new = where & ~visited.gather(1, table[cell, direction, None])[:, 0]
            frontier[rows, torch.where(new, size, edges)] = cell * 4 + direction
            size.add_(new)

    join(below(draws[:, 0], n), torch.ones_like(rows, dtype=torch.bool))
    for step in range(1, edges + 1):
        place = below(draws[:, step], size)[:, None]
        wall = frontier.gather(1, place)[:, 0]
        size -= 1
        frontier.scatter_(1, place, frontier.gather(1, size[:, None]))
        cell, direction = wall >> 2, wall & 3
        to = table[cell, direction]
        new = ~visited.gather(1, to[:, None])[:, 0]
        _carve(passages, rows, cell, direction, to, new)
        join(torch.where(new, to, 0), new)
    return passages


def _kruskal(indices: Tensor, seed: int, height: int, width: int) -> Tensor:
    """Draw t: the t-th swap of a Fisher-Yates shuffle of the walls, each opened if it joins two parts."""
    batch, n = len(indices), height * width
    cells, directions = _edges(height, width, indices.device)
    edges = len(cells)
    draws, table = words(seed, STREAM_GENERATE, indices, edges), neighbor_table(height, width, indices.device)
    rows = torch.arange(batch, device=indices.device)
    passages = indices.new_zeros(batch, n)
    order = torch.arange(edges, device=indices.device).repeat(batch, 1)
    part = torch.arange(n, device=indices.device).repeat(batch, 1)
    for step in range(edges):
        place = step + below(draws[:, step], edges - step)[:, None]
        wall = order.gather(1, place)
        order.scatter_(1, place, order[:, step, None].clone())
        cell, direction = cells[wall[:, 0]], directions[wall[:, 0]]
        to = table[cell, direction]
        old, new = part.gather(1, to[:, None]), part.gather(1, cell[:, None])
        _carve(passages, rows, cell, direction, to, (old != new)[:, 0])
        part = torch.where(part == old, new, part)
    return passages


def _chosen(indices: Tensor, seed: int, count: int, low: int, high: int) -> Tensor:
    """bool [B, count]: which of `count` walls or cells are, each with the share that its maze draws.

    Draw 0 of STREAM_SHARE: where between low and high, in 2^-32, the share is, by its upper 30 bits. Draw 1 + i: i is
    chosen where the draw is less than the share.
    """
    draws = words(seed, STREAM_SHARE, indices, 1 + count)
    share = low + (((high - low) * (draws[:, :1] >> 2)) >> 30)
    return draws[:, 1:] < share


def _opened(passages: Tensor, which: Tensor, height: int, width: int) -> Tensor:
    """Passages int64 [B, N] with the walls bool [B, walls] opened, in the order of _edges."""
    cells, directions = _edges(height, width, passages.device)
    bits = torch.tensor((_BITS, _OPPOSITE), device=passages.device)
    to = neighbor_table(height, width, passages.device)[cells, directions]
    # Every bit of a cell is set by one wall, so a sum is an or.
    added = torch.zeros_like(passages)
    added.index_add_(1, cells, which * bits[0][directions])
    added.index_add_(1, to, which * bits[1][directions])
    return passages | added


def _percolation(indices: Tensor, seed: int, height: int, width: int, low: int, high: int) -> Tensor:
    """Where the share is 1/2, bit e % 32 of draw e / 32 opens wall e, else see _chosen: those walls stand."""
    walls = 2 * height * width - height - width
    if low == high == 2**31:
        edge = torch.arange(walls, device=indices.device)
        draws = words(seed, STREAM_GENERATE, indices, (walls + 31) // 32)
        is_open = (draws[:, edge // 32] >> (edge % 32)) & 1 == 1
    else:
        is_open = ~_chosen(indices, seed, walls, low, high)
    return _opened(indices.new_zeros(len(indices), height * width), is_open, height, width)


def _obstacles(indices: Tensor, seed: int, height: int, width: int, low: int, high: int) -> Tensor:
    """Cell c is blocked where _chosen says so."""
    n = height * width
    blocked = _chosen(indices, seed, n, low, high)
    cells, directions = _edges(height, width, indices.device)
    to = neighbor_table(height, width, indices.device)[cells, directions]
    passages = _opened(indices.new_zeros(len(indices), n), ~(blocked[:, cells] | blocked[:, to]), height, width)
    return passages.masked_fill(blocked, BLOCKED)


PERFECT: dict[str, Callable[[Tensor, int, int, int], Tensor]] = {
    "dfs": _dfs,
    "wilson": _wilson,
    "prim": _prim,
    "kruskal": _kruskal,
}
WITH_DENSITY: dict[str, Callable[[Tensor, int, int, int, int, int], Tensor]] = {
    "percolation": _percolation,
    "obstacles": _obstacles,
}


def generate_mazes(
    indices: Tensor, seed: int, height: int, width: int, algorithm: str, low: int = 0, high: int = 0
) -> Tensor:
    """Mazes `indices` int64 [B] of `seed` -> passages uint8 [B, H, W]; a blocked cell is BLOCKED.

    low, high: the share, in 2^-32, of walls that stand, of cells that are blocked, or of a perfect maze's remaining
    walls that are opened: each of all walls is drawn, and opening an open one changes nothing.
    """
    n = height * width
    parts = []
    for part in indices.split(_CHUNK):
        if algorithm in WITH_DENSITY:
            passages = WITH_DENSITY[algorithm](part, seed, height, width, low, high)
        else:
            passages = PERFECT[algorithm](part, seed, height, width)[:, :n]
            if high > 0:
                passages = _opened(passages, _chosen(part, seed, 2 * n - height - width, low, high), height, width)
        parts.append(passages)
    passages = torch.cat(parts) if parts else indices.new_zeros(0, n)
    return passages.to(torch.uint8).view(-1, height, width)
