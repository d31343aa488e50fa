"""What a trained PoH planner's routers do on the test mazes, and how the mazes go with other weights than theirs."""

from __future__ import annotations

from typing import Any

import torch

from poh_ext.routing_records import INTERVENTIONS, kept_passes, over_mazes, routing_record
from poh_ext.tasks import MazeTasks
from poh_ext.training.evaluate import Evaluation, evaluate, first_maze_routing
from poh_ext.training.plan import PlannedRow

__all__ = ["RoutingStudy", "interventions"]

BATCH = 64


def interventions(planned: PlannedRow, mazes: int) -> int:
    """How many more forward passes over the test mazes a row has for them."""
    if not (planned.config.routing_intervention and planned.trained and planned.model == planned.kind
            and planned.kind.startswith("poh")):  # fmt: skip
        return 0
    unchanged = planned.config.decode_used != "table"
    return len(_names(mazes)) + unchanged


def _names(mazes: int) -> list[str]:
    """The names of the interventions; "shuffled" needs a second maze."""
    return [name for name in INTERVENTIONS if name != "unchanged" and (name != "shuffled" or mazes > 1)]


class RoutingStudy:
    """Given to `evaluate` as what observes, it collects the routing weights of all test mazes; `record` then says what
    it saw and, where the row asks for it, evaluates with other weights.

    Args:
        model: a PoH planner.
        tasks: the test mazes that it is evaluated on.
        how: further arguments of `evaluate`, the same for all evaluations of the planner.
    """

    def __init__(self, model: torch.nn.Module, tasks: MazeTasks, how: dict[str, Any]) -> None:
        self.model, self.tasks, self.how = model, tasks, how
        self.passes: list[int] = []
        self.kept: list[torch.Tensor] = []  # of each batch [kept passes, depth, mazes, heads]
        self.total: torch.Tensor | float = 0.0  # [depth, heads], over mazes, of the mean over passes

    def __call__(self) -> None:
        weights = self.model.routing_weights().float()
        if weights.dim() == 5:
            weights = weights.mean(3)  # over the cells
        self.passes = kept_passes(len(weights))
        self.total = self.total + weights.double().mean(0).sum(1).cpu()
        self.kept.append(weights[torch.tensor(self.passes) - 1].cpu())

    def mean(self) -> torch.Tensor:
        """Mean weights [depth, heads] over passes and mazes."""
        return self.total / len(self.tasks)

    def record(self, planned: PlannedRow, seed: int, unchanged: Evaluation) -> dict[str, Any]:
        """A record of `Results.routing`, after `unchanged`, the evaluation that was observed."""
        given = {name: self.how[name] for name in ("passes", "tolerance", "precision") if name in self.how}
        first = first_maze_routing(self.model, self.tasks, **given)
        record = routing_record(planned.model, seed, *first, scale=planned.scale)
        record["over_mazes"] = over_mazes(torch.cat(self.kept, 2), self.passes, self.model.valid_heads)
        if interventions(planned, len(self.tasks)):
            if planned.config.decode_used != "table":
                unchanged = self._evaluate()
            outcomes = {"unchanged": unchanged, **{name: self._intervene(name) for name in _names(len(self.tasks))}}
            record["interventions"] = {name: {"reached": outcome.reached.tolist(), "optimal": outcome.optimal.tolist()}
                                       for name, outcome in outcomes.items()}  # fmt: skip
        return record

    def _intervene(self, name: str) -> Evaluation:
        with self.model.override_routing(self.mean() if name == "frozen" else name):
            return self._evaluate(f"{self.how['label']}, routing {name}")

    def _evaluate(self, label: str | None = None) -> Evaluation:
        """Evaluate by one table: asking anew at each step would take hours, and leave mazes alone in their batches."""
        n = len(self.tasks)
        batch = next((size for size in range(BATCH, 1, -1) if n % size != 1), BATCH)  # no batch of a single maze
        how = {**self.how, "label": label or f"{self.how['label']}, by one table"}
        return evaluate(self.model, self.tasks, decode="table", batch_size=batch, **how)
