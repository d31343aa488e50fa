"""The base class of both planners: options, embedding of a maze, passes with and without a graph, policy head."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from poh_ext._sharing import of_each
from poh_ext.models.config import PlannerConfig, positive
from poh_ext.models.embedding import CellEmbedding, MazeEncoder, passage_bits
from poh_ext.ops import maze
from poh_ext.reference.horizon_ce import readable

__all__ = ["Planner", "grid_shape"]

MOVES = 4  # up, down, left, right
FIRST_PART, PART_SECONDS = 100, 1.0  # passes until `done` is first called; parts double until one takes so long


def grid_shape(size: int | tuple[int, int]) -> tuple[int, int]:
    """An int side or a pair (height, width) -> (height, width), checked."""
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"size must be an int or a pair (height, width), got {size!r}")
    positive(**{"size" if pair[0] == pair[1] else "size (height)": pair[0], "size (width)": pair[1]})
    return int(pair[0]), int(pair[1])


class Planner(nn.Module):
    """Base class of the planners. A planner keeps a state for every cell and updates it in passes over the same blocks.

    A subclass sets `blocks` and defines `_pass`, and where its state is more than the cells [B, N, d_model] the methods
    beside it.
    """

    blocks: nn.ModuleList
    has_router = False  # PoH: it has routing_entropy() and routing_weights()

    def __init__(self, size: int | tuple[int, int], config: PlannerConfig):
        super().__init__()
        self.size = height, width = grid_shape(size)
        self.config = config
        self.n_cells = height * width
        self.passes, self.valid_heads = config.R, int(config.valid_heads)
        self.norm, self.reinject, self.rest = config.norm_used, config.reinject_used, float(config.rest)
        self.moves, absolute = config.head == "moves", config.positions == "absolute"
        # Without a parameter per cell, mazes of any size will do.
        self.any_size = self.moves and not absolute
        self.embed = CellEmbedding(self.n_cells, config.d_model, config.cell_features, positions=absolute)
        self.encoder = MazeEncoder(config.d_model) if config.maze_enc else None
        self.head = nn.Linear(config.d_model, MOVES if self.moves else self.n_cells)

    @property
    def looped(self) -> bool:
        """Whether the number of passes can be chosen: not so for the baseline as published, which has one."""
        return self.passes > 1

    def _check(self, mazes, start: Tensor, goal: Tensor) -> None:
        passages = getattr(mazes, "passages", None)
        if not isinstance(passages, Tensor):
            raise TypeError(f"mazes must be a MazeBatch, got {type(mazes).__name__}")
        if passages.dim() != 3 or (tuple(passages.shape[1:]) != self.size and not self.any_size):
            raise ValueError(
                f"mazes must be of the model's size {self.size[0]}x{self.size[1]}, "
                f"got passages of shape {tuple(passages.shape)}"
            )
        if passages.device != self.head.weight.device:
            raise ValueError(f"mazes are on {passages.device}, the model is on {self.head.weight.device}")
        n_cells = passages.shape[1] * passages.shape[2]
        for name, cells in (("start", start), ("goal", goal)):
            if not isinstance(cells, Tensor) or cells.dtype != torch.int64:
                given = cells.dtype if isinstance(cells, Tensor) else type(cells).__name__
                raise TypeError(f"{name} must be an int64 tensor, got {given}")
            several = name == "goal" and cells.dim() == 2 and cells.shape[1] > 0
            if cells.shape[:1] != passages.shape[:1] or (cells.dim() != 1 and not several):
                accepted = f"({len(passages)},)" + f" or ({len(passages)}, G)" * (name == "goal")
                raise ValueError(f"{name} must have shape {accepted}, got {tuple(cells.shape)}")
            if cells.device != passages.device:
                raise ValueError(f"{name} is on {cells.device}, mazes are on {passages.device}")
            # Elsewhere the scatter in CellEmbedding checks the range on the device, without a synchronisation. On CUDA,
            # POH_EXT_CHECKS=1 asks for the look.
            if cells.device.type in ("cpu", "cuda") and readable(cells):
                wrong = (cells < 0) | (cells >= n_cells)
                if several:
                    wrong[:, 1:] &= cells[:, 1:] != -1
                if wrong.any():
                    at = wrong.nonzero()[0].tolist()
                    raise IndexError(f"{name}{at} is {int(cells[tuple(at)])}, but cells are 0 to {n_cells - 1}")

    def hidden(
        self,
        mazes,
        start: Tensor,
        goal: Tensor,
        *,
        passes: int | None = None,
        grad_passes: int | None = None,
        tolerance: float = 0.0,
    ) -> Tensor:
        """The state of every cell before the policy head, [B, N, d_model]. Arguments are those of `forward`.

        It is the `hidden` of the linear loss. The `weight` and `bias` of that loss are `model.head.weight` and
        `model.head.bias`.
        """
        return self.hidden_passes(
            mazes,
            start,
            goal,
            after=(self.passes if passes is None else passes,),
            grad_passes=grad_passes,
            tolerance=tolerance,
        )[0]

    def hidden_passes(
        self,
        mazes,
        start: Tensor,
        goal: Tensor,
        *,
        after: Sequence[int],
        grad_passes: int | None = None,
        tolerance: float = 0.0,
        state_noise: float = 0.0,
        neighbors: Tensor | None = None,
        done: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """`hidden` after several numbers of passes of one run, for deep supervision.

        Args:
            mazes, start, goal: as in `forward`.
            after: rising numbers of passes; the last is how many are run.
            grad_passes: None: gradients flow through all passes. n: gradients of each state flow through the n passes
                before it. Passes before those run without a graph, so nothing before them gets a gradient.
            tolerance: as in `forward`.
            state_noise: in training mode, Gaussian noise of this standard deviation is added to the state of every cell
                before each pass with gradients that follows one without.
            neighbors: `mazes.neighbors()`, if the caller has it; it is of use with valid_heads.
            done: called now and then with the number of passes made so far; may raise an error to stop.

        Returns:
            A [B, N, d_model] for each of `after`.
        """
        positive(**{f"passes ({i})" if len(after) > 1 else "passes": n for i, n in enumerate(after)})
        if not after or any(b <= a for a, b in pairwise(after)):
            raise ValueError(f"after must be one or more rising numbers of passes, got {list(after)}")
        if grad_passes is not None:
            positive(grad_passes=grad_passes)
        for name, value in (("tolerance", tolerance), ("state_noise", state_noise)):
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {value}")
        self._check(mazes, start, goal)
        return self.unchecked_states(mazes, start, goal, after, grad_passes, tolerance, state_noise, neighbors, done)

    def unchecked_states(
        self,
        mazes,
        start: Tensor,
        goal: Tensor,
        after: Sequence[int],
        grad_passes: int | None = None,
        tolerance: float = 0.0,
        state_noise: float = 0.0,
        neighbors: Tensor | None = None,
        done: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """`hidden_passes` without its checks, which read values: for tensors that have shapes only."""
        if self.valid_heads and neighbors is None:
            neighbors = of_each(mazes.passages, maze.neighbors)
        tokens = self.embed(mazes.passages, start, goal)
        if self.encoder is not None:
            tokens = tokens + self.encoder(mazes.raster()).unsqueeze(1)
        state, found, graph, step = self._begin(tokens), [], torch.is_grad_enabled(), 0
        tolerance = max(tolerance, self.rest)
        if (
            not graph
            and done is None
            and (fast := self._without_graph(state, tokens, neighbors, 0, after, tolerance)) is not None
        ):
            self._end(fast[0])
            return fast[1]
        with_graph, part = False, FIRST_PART  # with_graph: of the pass before
        for n in after:
            while step < n:
                with torch.set_grad_enabled(graph and (grad_passes is None or n - step <= grad_passes)):
                    kept = self.rest if torch.is_grad_enabled() else tolerance
                    end = n if grad_passes is None or not graph else max(step + 1, n - grad_passes)
                    if done is not None:  # each part begins with a pass over every cell
                        end, began = min(end, step + part), time.perf_counter()
                    if (fast := self._without_graph(state, tokens, neighbors, step, (end,), kept)) is not None:
                        state, step, with_graph = fast[0], end, False
                    else:
                        if state_noise and self.training and torch.is_grad_enabled() and not with_graph and step:
                            state = self._shifted(state, state_noise * torch.randn_like(self._cells(state)))
                        with_graph = torch.is_grad_enabled()
                        state, step = self._pass(state, tokens, neighbors, step, kept), step + 1
                    if done is not None:
                        part *= 1 + (time.perf_counter() - began < PART_SECONDS)
                        done(step)
            found.append(self._cells(state))
        self._end(state)
        return found

    def _begin(self, tokens: Tensor) -> Any:
        """The state before the first pass."""
        return tokens

    def _pass(self, state: Any, tokens: Tensor, neighbors: Tensor | None, step: int, tolerance: float) -> Any:
        """The state after one more pass."""
        raise NotImplementedError

    def _cells(self, state: Any) -> Tensor:
        return state

    def _shifted(self, state: Any, by: Tensor) -> Any:
        """The state with `by` added to its cells."""
        return state + by

    def _end(self, state: Any) -> None:
        """Called with the last state."""

    def _without_graph(
        self, state: Any, tokens: Tensor, neighbors: Tensor | None, step: int, after: Sequence[int], tolerance: float
    ) -> tuple[Any, list[Tensor]] | None:
        """Run passes faster than by `_pass`, or return None if that is impossible. Returns the state after `after[-1]`
        passes, of which `step` were made before, and the cells [B, N, d_model] after each of `after`."""
        return None

    def forward(
        self,
        mazes,
        start: Tensor,
        goal: Tensor,
        *,
        passes: int | None = None,
        grad_passes: int | None = None,
        tolerance: float = 0.0,
    ) -> Tensor:
        """Policy logits: [B, N, N] with the score of the step from cell i to cell j at [b, i, j]; with head="moves"
        [B, N, 4] with the scores of the moves up, down, left, right. Blocked moves are scored, too: see `policy`.

        Args:
            mazes: MazeBatch of B mazes on the model's device, of the model's size (of any size if `any_size`).
            start, goal: int64 [B], cell numbers in row-major order. goal may be [B, G], several goals of a maze, any of
                which will do, padded with -1 after the first: each cell of them gets the mark of the goal. The shipped
                planners are trained with one.
            passes: the number of passes. None: the model's own number (`loops` or `R`).
            grad_passes: the number of passes, counted from the last, that gradients flow through; the passes before
                them run without a graph. None: all.
            tolerance: largest change of a state that counts as none, in passes without a graph; at least the planner's
                own `rest`. A cell that changes by no more in every feature keeps its state and rests until a neighbour
                changes; PoH's routing weights are treated alike. If all heads see only neighbours, the CPU kernel skips
                cells at rest. 0: every pass computes every cell.

        Raises:
            TypeError: mazes is no MazeBatch, start or goal is not an int64 tensor, or passes is no int.
            ValueError: a size, shape or device is wrong, passes < 1, or tolerance is negative or not finite.
            IndexError: a start or goal lies outside the grid (the message gives its place).
        """
        return self.head(self.hidden(mazes, start, goal, passes=passes, grad_passes=grad_passes, tolerance=tolerance))

    def policy(
        self, mazes, start: Tensor, goal: Tensor, *, passes: int | None = None, tolerance: float = 0.0
    ) -> Tensor:
        """Logits [B, N, 4] of the moves up, down, left, right, with -inf at walls. With head="cells" these are the
        columns of `forward` at the passable neighbours; the other N - 4 columns are not computed. Arguments and errors
        are those of `forward`.

        Examples:
            >>> table = model.eval().policy(tasks.mazes, tasks.start, tasks.goal)
            >>> poh_ext.greedy_rollout(table, tasks).reached.float().mean()
        """
        moves = self.move_scores(self.hidden(mazes, start, goal, passes=passes, tolerance=tolerance))
        return moves.masked_fill(passage_bits(mazes.passages) == 0, -math.inf)

    def move_scores(self, x: Tensor) -> Tensor:
        """Scores [B, N, 4] of the moves up, down, left, right from the states [B, N, d_model] of the cells, walls not
        masked. With head="cells" those of a step out of the grid mean nothing."""
        if self.moves:
            return self.head(x)
        width = self.size[1]
        cell = torch.arange(self.n_cells, device=x.device)
        # Where a step leaves the grid the column is that of some other cell: a wall, masked by `policy`.
        columns = torch.stack([cell - width, cell + width, cell - 1, cell + 1], dim=1) % self.n_cells
        # The four columns of a cell are the same in all mazes, so this is one small product per cell.
        moves = torch.matmul(x.transpose(0, 1), self.head.weight[columns].transpose(1, 2)).transpose(0, 1)
        return moves + self.head.bias[columns].to(moves.dtype)
