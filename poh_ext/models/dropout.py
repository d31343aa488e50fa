"""Dropout that draws its masks several times faster on the CPU than torch does.

torch draws one Bernoulli number per element, on one thread: a third of the time of a training step of the planners
in bfloat16. Here one 64-bit draw decides for four elements, and the mask is made with vectorised integer arithmetic.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Dropout", "dropout_mask", "has_fast_mask"]


def has_fast_mask(x: Tensor) -> bool:
    """Whether `dropout_mask` is the faster way for x: on the CPU, outside torch.compile (which fuses its own)."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def dropout_mask(shape: torch.Size | tuple[int, ...], p: float, dtype: torch.dtype) -> Tensor:
    """CPU tensor of 0 (probability p, rounded to 2^-15) and 1 / (1 - p), drawn from torch's default generator.

    Example:
        >>> y = x * dropout_mask(x.shape, 0.1, x.dtype)     # F.dropout(x, 0.1)
    """
    n = math.prod(shape)
    threshold = round(p * 2**15)  # up to 2^15, itself no int16: hence `> threshold - 1` below
    # All 64 bits are random only with the range spelt out: random_() alone leaves the sign bit 0.
    bits = torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:n].view(shape)
    bits.bitwise_and_(2**15 - 1)  # 0 ... 2^15 - 1, so that the difference below cannot overflow
    if dtype not in (torch.bfloat16, torch.float16):
        return (bits > threshold - 1).to(dtype).mul_(1 / (1 - p))
    # In 16-bit types the comparison's conversion to float is what costs: -1 or 0 as a bit mask of the scale instead.
    scale = int(torch.tensor(1 / (1 - p), dtype=dtype).view(torch.int16))
    keep = bits.neg_().add_(threshold - 1).bitwise_right_shift_(15)  # -1 where bits >= threshold, else 0
    return keep.bitwise_and_(scale).view(dtype)


class Dropout(nn.Dropout):
    """nn.Dropout, with `dropout_mask` on the CPU. Other numbers than torch's from the same seed."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if not has_fast_mask(x):
            return F.dropout(x, self.p)
        return x * dropout_mask(x.shape, self.p, x.dtype)
