"""Greedy rollout: the compiled kernel where there is one, else the PyTorch reference."""

from __future__ import annotations

import torch
from torch import Tensor

from poh_ext._backend import has_kernel
from poh_ext.reference import maze_rollout as reference

__all__ = ["greedy_rollout"]


def greedy_rollout(
    logits: Tensor, passages: Tensor, start: Tensor, goal: Tensor, max_steps: int, moves: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Reached bool [n], path int64 [n, max_steps + 1] padded with -1, steps int64 [n]; logits [n, N, 4] of the moves if
    `moves`, else [n, N, N] of the cells to step to."""
    if has_kernel(passages.device):
        contiguous = (t.contiguous() for t in (logits, passages, start, goal))
        return torch.ops.poh_ext.greedy_rollout(*contiguous, max_steps, moves)
    return reference.greedy_rollout(logits, passages, start, goal, max_steps, moves)


if has_kernel(torch.device("cpu")):

    @torch.library.register_fake("poh_ext::greedy_rollout")
    def _(logits, passages, start, goal, max_steps, moves):
        batch = passages.shape[0]
        path = passages.new_empty((batch, max_steps + 1), dtype=torch.int64)
        return passages.new_empty(batch, dtype=torch.bool), path, start.new_empty(batch)
