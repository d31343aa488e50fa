"""Philox4x32-10 in int64 arithmetic: the random numbers of every maze, the same on every device.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Key = the 64-bit seed; counter =
(block, stream, low and high half of the maze's index). So a draw depends on nothing but what it is for, and
mazes may be made in any order, batch or thread. csrc/common/philox.h is the same in C++.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "STREAM_CANDIDATE",
    "STREAM_ENDPOINTS",
    "STREAM_GENERATE",
    "STREAM_POLICY",
    "STREAM_SHARE",
    "below",
    "philox4x32",
    "words",
]

# What a draw is for. Streams never overlap, so a maze and the task on it are independent.
STREAM_GENERATE, STREAM_ENDPOINTS, STREAM_CANDIDATE, STREAM_POLICY, STREAM_SHARE = range(5)

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def _product(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * m; the 64-bit product wraps to a negative int64, its bits are right."""
    p = a * m
    return (p >> 32) & _MASK, p & _MASK


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> Tensor:
    """Ten rounds on counters of 32-bit values held in int64 (broadcast) -> [..., 4] of 32-bit values in int64."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _product(c0, _M0)
        high1, low1 = _product(c2, _M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def words(seed: int, stream: int, indices: Tensor, count: int, first_block: int = 0) -> Tensor:
    """The first `count` 32-bit draws (from block `first_block` on) of each index [B] -> int64 [B, count]."""
    blocks = torch.arange(first_block, first_block + (count + 3) // 4, device=indices.device)
    index = indices[:, None]
    counter = (blocks[None], torch.full_like(index, stream), index & _MASK, (index >> 32) & _MASK)
    return philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK)).flatten(1)[:, :count]


def below(word: Tensor, n: Tensor | int) -> Tensor:
    """A number in [0, n) from a 32-bit draw, by its high bits; uneven by less than n / 2^32."""
    return (word * n) >> 32
