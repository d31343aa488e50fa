"""Train the recipe: AdamW, warm-up and cosine, every cell supervised, new mazes of mixed sizes and passes each step.

All that a step draws is named by the seed and the step, and there is no dropout: going on from the state that is
written now and then gives the weights of an uninterrupted run bit for bit (on one machine with one number of threads).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import poh_ext
from poh_ext.report.results import write_atomically
from poh_ext.solve.evaluate import exact_over_passes
from poh_ext.solve.recipe import Recipe
from poh_ext.solve.weights import save
from poh_ext.tasks import sample_tasks
from poh_ext.training.checkpoint import read_archive
from poh_ext.training.device import autocast
from poh_ext.training.every_cell import UNSUPERVISED, every_cell_loss
from poh_ext.training.loop import CLIP_NORM, Diverged
from poh_ext.training.schedule import learning_rate

__all__ = ["state_path", "train"]

FORMAT, VERSION = "poh_ext solve training", 1
REPORT_EVERY = 200  # steps
WATCHED_SEED = 5_000_000  # mazes that show progress; not those of the evaluation
WATCHED_PASSES = 2.0  # for each move of the shortest path
CPU = torch.device("cpu")


def state_path(output: Path) -> Path:
    """Where an unfinished training lies."""
    return output.with_name(output.name + ".state")


class _Training:
    """All that a training changes."""

    def __init__(self, recipe: Recipe, precision: str) -> None:
        self.recipe, self.precision = recipe, precision
        self.model = recipe.build().train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=recipe.lr, fused=True)
        self.step, self.seconds = 0, 0.0

    def update(self) -> tuple[float, float]:
        """One step; (loss, share of the supervised cells whose move was right before it)."""
        batch, began = self.recipe.batch(self.step), time.perf_counter()
        rate = learning_rate(self.step, total_steps=self.recipe.steps, peak=self.recipe.lr,
                             warmup_steps=self.recipe.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with autocast(CPU, self.precision):
            logits = self.model(batch.mazes, batch.start, batch.goal, passes=batch.passes,
                                grad_passes=self.recipe.grad_passes)
        loss = every_cell_loss(logits, batch.targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        value = loss.item()
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value} at step {self.step + 1}; try another seed or a lower learning rate")
        self.optimizer.step()
        supervised = batch.targets != UNSUPERVISED
        right = (logits.argmax(-1) == batch.targets)[supervised].float().mean().item()
        self.step += 1
        self.seconds += time.perf_counter() - began
        return value, right

    def save(self, path: Path) -> None:
        record = {"format": FORMAT, "version": VERSION, "recipe": self.recipe.record(), "precision": self.precision,
                  "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step,
                  "seconds": self.seconds}
        write_atomically(path, lambda file: torch.save(record, file))

    def load(self, path: Path) -> None:
        try:
            record = read_archive(path, FORMAT, VERSION)
        except ValueError as error:
            raise ValueError(f"{path} {error}; delete it to start anew") from error
        mine = {**self.recipe.record(), "precision": self.precision}
        theirs = {**record["recipe"], "precision": record["precision"]}
        for name, value in mine.items():
            if theirs.get(name) != value:
                raise ValueError(f"{path} is of a training with {name} {theirs.get(name)!r}, not {value!r}; give the "
                                 "same options to go on with it, or delete it to start anew")
        self.model.load_state_dict(record["model"])
        self.optimizer.load_state_dict(record["optimizer"])
        self.step, self.seconds = record["step"], record["seconds"]


def train(recipe: Recipe, output: Path, *, precision: str = "float32", check: Callable[[], None] = lambda: None,
          say: Callable[[str], None] = print, report_every: int = REPORT_EVERY, watched: int = 100) -> dict[str, Any]:
    """Train, go on with an unfinished training of the same recipe, and write the weights to `output` in one step.

    Args:
        recipe: see Recipe.
        output: the weights; while the training is unfinished its state lies beside it (`state_path`).
        precision: "float32" or "bfloat16" (autocast) of the forward pass.
        check: called before each step; may raise Interrupted, after which the state is written.
        say: is told the loss, the moves and the mazes solved every `report_every` steps.
        watched: 12x12 mazes (shortest path of at least 50 cells) solved for that, with WATCHED_PASSES.

    Returns:
        The notes written with the weights: seconds, exact share of the watched mazes, versions.

    Raises:
        ValueError: the state beside `output` is damaged or of another recipe. Diverged: the loss is not finite.
    """
    training, state = _Training(recipe, precision), state_path(output)
    if state.exists():
        training.load(state)
        say(f"going on after step {training.step}")
    tasks, losses, rights, exact = sample_tasks(watched, 12, min_path=50, seed=WATCHED_SEED), [], [], None
    while training.step < recipe.steps:
        try:
            check()
        except BaseException:
            training.save(state)
            raise
        loss, right = training.update()
        losses.append(loss)
        rights.append(right)
        last = training.step == recipe.steps
        if last or training.step % report_every == 0:
            exact = float(exact_over_passes(training.model, tasks, (WATCHED_PASSES,))[0].double().mean())
            say(f"step {training.step}/{recipe.steps}  {training.seconds:.0f} s  loss {sum(losses) / len(losses):.4f}  "
                f"moves {100 * sum(rights) / len(rights):.2f} %  12x12 solved exactly {100 * exact:.1f} %")
            losses, rights = [], []
            training.save(state)
    if exact is None:  # the state was of a finished training whose weights were not written
        exact = float(exact_over_passes(training.model, tasks, (WATCHED_PASSES,))[0].double().mean())
    notes = {"seconds": round(training.seconds, 1), "exact": exact, "precision": precision,
             "threads": torch.get_num_threads(), "torch": str(torch.__version__), "poh_ext": poh_ext.__version__}
    save(output, training.model, recipe, notes)
    state.unlink()
    return notes
