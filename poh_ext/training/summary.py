"""What a run says at its end and after each row, and the report it leaves."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from poh_ext.maze_drawing import MazeSample
from poh_ext.mazes import MazeBatch
from poh_ext.report import FILES, ablation_table, results_table, verdicts, write_report
from poh_ext.results import Results, Row, label
from poh_ext.tasks import MazeTasks
from poh_ext.training.output import own_folders
from poh_ext.training.timing import describe_seconds
from poh_ext.training.trial import MAZES_SHOWN

__all__ = ["maze_sample", "print_row", "summarize"]


def print_row(row: Row) -> None:
    took = f"  trained in {describe_seconds(row.train_seconds)}" if row.trained else ""
    note = f"; {row.note}" if row.note else ""
    n = len(row.reached)
    exact = f"  exact {100 * sum(row.exact) / n:5.1f} %" if row.exact else ""
    print(f"{label(row.model, row.trained, row.scale):24} seed {row.seed}: reached {100 * sum(row.reached) / n:5.1f} %"
          f"  optimal {100 * sum(row.optimal) / n:5.1f} %{exact}  next move "
          f"{100 * row.moves_correct / row.moves_total:5.1f} %  ({n} mazes){took}{note}", flush=True)


def summarize(results: Results, folder: Path, sample: MazeSample | None) -> None:
    """Print the table and the verdicts, write report.md and the plots, and say where the files lie."""
    print(f"\n{results_table(results).text()}\n")
    if table := ablation_table(results):
        print(f"{table}\n")
    for line in verdicts(results):
        print(f"- {line}")
    written = write_report(results, folder, sample)
    print("\nfiles:")
    for path in (folder / "results.json", *written):
        print(f"  {path}  {FILES[path.name]}")
    for path, about in own_folders(folder):
        print(f"  {path}/  {about}")


def maze_sample(results: Results, seed: int, test: MazeTasks, walls: MazeBatch) -> MazeSample | None:
    """The first test mazes of a seed with the path of each trained planner (or of what there is), among `walls`, the
    mazes as they were drawn."""
    walked = [row for row in results.rows if row.seed == seed and row.paths and "/" not in row.model]
    walked = [row for row in walked if row.trained] or walked
    if not walked:
        return None
    tasks = test[:MAZES_SHOWN]
    paths = {label(row.model, row.trained, row.scale): pad_sequence(
        [torch.tensor(path) for path in row.paths], batch_first=True, padding_value=-1) for row in walked}
    return MazeSample(walls.passages[:MAZES_SHOWN], tasks.start, tasks.goal, tasks.path, paths)
