# mypy: disallow-any-generics, disallow-untyped-defs, disallow-incomplete-defs, check-untyped-defs
# mypy: disallow-untyped-calls, disallow-untyped-decorators, disallow-subclassing-any, warn-return-any, strict-equality
# mypy: warn-unused-ignores, no-implicit-reexport, extra-checks, warn-redundant-casts
"""A user's program as a type checker sees it; tests/package/test_types.py runs mypy on it, and nobody the program.

The flags above are those of `mypy --strict`. `assert_type` fails where mypy sees Any. A wrong call carries the error
that mypy gives; where it gives none, mypy says that the comment is unused.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import assert_type

import poh_ext
from poh_ext import HorizonMetrics, MazeBatch, MazeTasks, Rollout, io

Metered = tuple[Tensor, HorizonMetrics]

assert_type(poh_ext.__version__, str)
assert_type(poh_ext.GENERATORS, dict[str, str])
assert_type(io.FORMATS, dict[str, str])
assert_type(poh_ext.backend_info(), dict[str, Any])


def plain_losses(logits: Tensor, labels: Tensor, hidden: Tensor, head: torch.nn.Linear, metrics: bool) -> None:
    assert_type(poh_ext.cross_entropy(logits, labels), Tensor)
    assert_type(poh_ext.cross_entropy(logits, labels, None, -100, "sum", 0.1, z_loss=1e-4, softcap=30.0), Tensor)
    assert_type(poh_ext.cross_entropy(logits, labels, weight=[1.0, 2.0], return_metrics=True), Metered)
    assert_type(poh_ext.cross_entropy(logits, labels, return_metrics=metrics), Tensor | Metered)
    poh_ext.cross_entropy(logits, labels, "sum")  # type: ignore[arg-type]
    poh_ext.cross_entropy(logits, labels, softcaps=1.0)  # type: ignore[call-overload]
    poh_ext.cross_entropy(logits)  # type: ignore[call-overload]
    poh_ext.cross_entropy(logits, labels, return_metrics=True).backward()  # type: ignore[attr-defined]

    assert_type(poh_ext.linear_cross_entropy(hidden, head.weight, labels, head.bias), Tensor)
    loss, measured = poh_ext.linear_cross_entropy(hidden, head.weight, labels, candidates=labels, return_metrics=True)
    assert_type(measured.accuracy, Tensor)
    assert_type(loss, Tensor)
    poh_ext.linear_cross_entropy(hidden, head, labels)  # type: ignore[call-overload]


def planning_losses(logits: Tensor, path: Tensor, hidden: Tensor, head: torch.nn.Linear, metrics: bool) -> None:
    loss = poh_ext.multi_horizon_cross_entropy(
        logits, path, rows=path, horizons=3, label_smoothing=0.1, ignore_index=-1, horizon_weights=[1.0, 0.5, 0.25]
    )
    assert_type(loss, Tensor)
    loss, measured = poh_ext.multi_horizon_cross_entropy(logits, path, horizons=[0, 2], return_metrics=True)
    assert_type(measured, HorizonMetrics)
    assert_type(poh_ext.multi_horizon_cross_entropy(logits, path, return_metrics=metrics), Tensor | Metered)
    poh_ext.multi_horizon_cross_entropy(logits, path, rows=[1])  # type: ignore[call-overload]
    poh_ext.multi_horizon_cross_entropy(logits, path, path)  # type: ignore[call-overload]
    poh_ext.multi_horizon_cross_entropy(logits, path, horizons=2.5)  # type: ignore[call-overload]

    linear = poh_ext.multi_horizon_linear_cross_entropy
    assert_type(linear(hidden, head.weight, path, bias=head.bias, segments=path, class_weight=[1.0]), Tensor)
    assert_type(linear(hidden, head.weight, path, return_metrics=True), Metered)
    linear(hidden, path)  # type: ignore[call-overload]

    criterion = poh_ext.MultiHorizonCrossEntropy(horizons=3, weight=[1.0, 2.0])
    assert_type(criterion(logits, path, rows=path), Tensor)
    both: poh_ext.MultiHorizonCrossEntropy[Metered] = poh_ext.MultiHorizonCrossEntropy(return_metrics=True)
    assert_type(both.forward(logits, path), Metered)
    plain: poh_ext.MultiHorizonCrossEntropy = criterion  # without parameters it returns a tensor
    assert_type(plain(logits, path), Tensor)
    criterion(logits)  # type: ignore[call-arg]
    poh_ext.MultiHorizonCrossEntropy(horizon=3)  # type: ignore[call-overload]
    headed = poh_ext.MultiHorizonLinearCrossEntropy(reduction="sum", class_weight=[1.0])
    assert_type(headed(hidden, head.weight, path, bias=head.bias), Tensor)
    headed(hidden, head.weight, path, weight=path)  # type: ignore[misc]


def attention_and_routing(q: Tensor, mazes: MazeBatch, scores: Tensor) -> None:
    assert_type(poh_ext.neighbor_attention(q, q, q, mazes.neighbors(), bias=q), Tensor)
    poh_ext.neighbor_attention(q, q, q, mazes)  # type: ignore[arg-type]
    weights, entropy = poh_ext.route(scores, temperature=2.0)
    assert_type(weights, Tensor)
    assert_type(poh_ext.routing_entropy(entropy, reduction="none"), Tensor)
    poh_ext.route(scores, 2.0)  # type: ignore[call-arg]


def mazes_and_tasks(cells: Tensor) -> None:
    mazes = poh_ext.generate_mazes(8, (4, 7), algorithm="percolation", density=(0.1, 0.3), seed=1, device="cpu")
    assert_type(mazes, MazeBatch)
    assert_type(mazes[2:4].to(torch.device("cpu")), MazeBatch)
    assert_type(MazeBatch.cat([mazes, MazeBatch.open(2, 5), MazeBatch.from_free(mazes.raster() == 0)]), MazeBatch)
    assert_type(mazes.size, tuple[int, int])
    assert_type(mazes.shortest_paths(cells, cells, length=9), Tensor)
    poh_ext.generate_mazes(8, "7")  # type: ignore[arg-type]
    poh_ext.generate_mazes(8, 7, "dfs")  # type: ignore[call-arg]
    mazes.distance(cells)  # type: ignore[attr-defined]

    tasks = poh_ext.sample_tasks(8, 12, min_path=20, start="junction", braid=0.1)
    assert_type(tasks.mazes, MazeBatch)
    assert_type((tasks.start, tasks.goal, tasks.path, tasks.length), tuple[Tensor, Tensor, Tensor, Tensor])
    assert_type(poh_ext.sample_tasks_as_published(30, 12, 50, 42)[0], MazeTasks)
    poh_ext.sample_tasks(8, 12, minimum=20)  # type: ignore[call-arg]

    def policy(mazes: MazeBatch, position: Tensor, goal: Tensor) -> Tensor:
        return torch.zeros(len(mazes), 4)

    walk = poh_ext.greedy_rollout(poh_ext.random_policy(tasks, 0), tasks, max_steps=9)
    assert_type(walk, Rollout)
    assert_type(walk.reached, Tensor)
    poh_ext.greedy_rollout(poh_ext.beeline_policy(tasks), tasks.mazes)  # type: ignore[arg-type]
    assert_type(poh_ext.recondition_rollout(policy, tasks), Rollout)
    assert_type(poh_ext.random_rollout(tasks, 0), Rollout)
    poh_ext.recondition_rollout(torch.relu, tasks)  # type: ignore[arg-type]


def files(tasks: MazeTasks, mazes: MazeBatch, folder: Path) -> None:
    assert_type(io.write(folder / "a.csv", io.as_blocked(tasks), paths=tasks.path), Path)
    assert_type(io.as_blocked(mazes), MazeBatch)
    read = io.read("a.csv", format="hrm")
    assert_type(read, MazeTasks | MazeBatch)
    print(read.start)  # type: ignore[union-attr]
    assert_type(io.as_blocked(read), MazeBatch | MazeTasks)
    assert_type(io.read_hrm("a.csv").rating, list[str])
    assert_type(io.read_scenarios(folder / "a.scen", skip_unreachable=True).octile, Tensor)
    assert_type(io.read_map("a.map"), MazeBatch)
    assert_type(io.text(mazes), str)
    io.write_hrm("a.csv", tasks, rating=[1, "2"])
    io.write_scenarios("a.scen", tasks, octile=[1.0])
    for write, read_back in ((io.write_npz, io.read_npz), (io.write_safetensors, io.read_safetensors)):
        assert_type(write(folder / "a", tasks), Path)
        assert_type(read_back(folder / "a"), MazeTasks | MazeBatch)
    io.write_micromouse("a.txt", mazes)
    assert_type(io.read_micromouse("a.txt"), MazeTasks | MazeBatch)
    assert_type(io.from_lattice(io.to_lattice(tasks)), MazeTasks | MazeBatch)
    questions: io.Questions | io.Scenarios = io.read_hrm("a.csv")
    assert_type(questions.tasks, MazeTasks)
    assert_type(io.parse("S.G"), MazeTasks | MazeBatch)
    pixels = io.to_pixels(tasks)
    assert_type(pixels, NDArray[np.uint8])
    assert_type(io.from_pixels(pixels), MazeTasks | MazeBatch)
    io.write(tasks, "a.csv")  # type: ignore[arg-type]
    try:
        io.write_map("a.map", mazes)
    except io.FormatError as error:
        assert_type(error, io.FormatError)
