"""What a maze looks like to the planners: one token per cell, and a summary of the whole raster."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CellEmbedding", "MazeEncoder"]


def passage_bits(passages: Tensor) -> Tensor:
    """Passages uint8 [B, H, W] -> uint8 [B, N, 4], 1 where one may go up, down, left, right."""
    # Not torch.tensor([1, 2, 4, 8]): a GPU would have to wait for its copy from the host.
    place = torch.arange(4, dtype=torch.uint8, device=passages.device)
    return (passages.flatten(1).unsqueeze(-1) >> place) & 1


class MazeEncoder(nn.Module):
    """One summary vector per maze from its raster (uint8 [B, 2H+1, 2W+1], 1 = wall) -> [B, d_model]."""

    def __init__(self, d_model: int):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.project = nn.Linear(32 * 4 * 4, d_model)

    def forward(self, raster: Tensor) -> Tensor:
        x = raster.unsqueeze(1).to(self.conv1.weight.dtype)
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.project(F.adaptive_avg_pool2d(x, (4, 4)).flatten(1))


class CellEmbedding(nn.Module):
    """Cell features, position, start and goal marks -> one token per cell, [B, N, d_model].

    cell_features=4 is the passage bits (up, down, left, right): the walls are visible. cell_features=6 adds two bits,
    "is the start" and "is the goal", in place of the marks' own embeddings. cell_features=1 is the published input,
    one number per cell: 0 where the cell can be entered, 1 where it is walled in on all four sides. An all-open grid
    gives zeros, and so does every perfect maze: this input does not show the walls.

    A blocked cell has no mark of its own. It shows as a cell without passages, into which no passage leads.
    """

    def __init__(self, n_cells: int, d_model: int, cell_features: int, *, positions: bool = True):
        super().__init__()
        self.cell_features = cell_features
        self.cell = nn.Linear(cell_features, d_model)
        self.position = nn.Embedding(n_cells, d_model) if positions else None
        self.start = nn.Embedding(2, d_model) if cell_features < 6 else None
        self.goal = nn.Embedding(2, d_model) if cell_features < 6 else None

    def features(self, passages: Tensor) -> Tensor:
        """Passages uint8 [B, H, W] -> [B, N, 1 or 4], in the dtype of the weights."""
        if self.cell_features == 1:
            return (passages.flatten(1).unsqueeze(-1) == 0).to(self.cell.weight.dtype)
        return passage_bits(passages).to(self.cell.weight.dtype)

    def forward(self, passages: Tensor, start: Tensor, goal: Tensor) -> Tensor:
        features = self.features(passages)
        # One product does the cell, start and goal embeddings: a 2-row embedding looked up for every cell
        # would add its gradient row by row, on one thread.
        at_start = torch.zeros_like(features[..., :1]).scatter(1, start.view(-1, 1, 1), 1)
        # Padding says the first goal again: the scatter checks the range of all others.
        goals = goal[:, None] if goal.dim() == 1 else torch.where(goal == -1, goal[:, :1], goal)
        at_goal = torch.zeros_like(at_start).scatter(1, goals[..., None], 1)
        if self.start is None:
            tokens = self.cell(torch.cat([features, at_start, at_goal], dim=-1))
            return tokens if self.position is None else tokens + self.position.weight
        marks = torch.cat([features, 1 - at_start, at_start, 1 - at_goal, at_goal], dim=-1)
        weight = torch.cat([self.cell.weight, self.start.weight.t(), self.goal.weight.t()], dim=1)
        tokens = F.linear(marks, weight, self.cell.bias)
        return tokens if self.position is None else tokens + self.position.weight
