"""Dropout by the kernel where there is one. torch's own takes a third of a training step's time on a CPU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from poh_ext.ops.dropout import dropout, has_dropout

__all__ = ["Dropout"]


class Dropout(nn.Dropout):
    """nn.Dropout, by the kernel where it serves; other numbers than torch's from the same seed."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return dropout(x, self.p) if has_dropout(x) else F.dropout(x, self.p)
