"""The plan of a benchmark, before any work: models, sizes, memory, estimated time, and what does not fit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from poh_ext.models import PlannerConfig, gflop_per_maze, parameter_count
from poh_ext.models.parity import OnlyShapes
from poh_ext.models.planners import build
from poh_ext.results import CONTROLS
from poh_ext.tasks import MazeTasks
from poh_ext.training.checks import trained_by_the_run
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.data import Data
from poh_ext.training.evaluate import evaluation_passes, validations
from poh_ext.training.loop import Diverged, train_planner, warmup_warning
from poh_ext.training.plan import PlannedRow
from poh_ext.training.presets import SOLVERS, protocol_of
from poh_ext.training.routing_study import interventions
from poh_ext.training.workers import autocast

__all__ = [
    "available_memory",
    "describe_bytes",
    "describe_seconds",
    "print_estimate",
    "seconds_per_maze",
    "training_memory",
    "warnings_of",
    "without_misfits",
]

BUDGET = 3.0  # seconds to spend on timing one planner, where one maze does not take longer
FIXED = 256 << 20  # mazes of a batch, chunks of the loss, the allocator's slack
FRAGMENTED = 1.25  # measured: see training_memory
SPARE = 0.9  # of what is free: the rest is left to others
_CGROUPS = Path("/sys/fs/cgroup")


def without_misfits(
    rows: list[PlannedRow],
    device: torch.device,
    precision: str,
    *,
    available: int | None = None,
    due: Callable[[PlannedRow], bool] = lambda row: True,
) -> tuple[list[PlannedRow], dict[str, str]]:
    """The rows whose size fits the memory, and for each size that does not: which planner, its estimate, what is free.

    A size goes as a whole: a baseline without the PoH it is to be compared with would tell nothing.

    Args:
        due: whether a row is still to be trained; one that is not needs no memory.
    """
    available = available_memory(device) if available is None else available
    skipped: dict[str, str] = {}
    for row in rows:
        if row.trained and row.scale not in skipped and due(row):
            needed = _memory(row, device, precision)
            if needed > SPARE * available:
                skipped[row.scale] = (
                    f"{row.model}: training needs about {describe_bytes(needed)}, but only "
                    f"{describe_bytes(int(SPARE * available))} of the {describe_bytes(available)} that are free may be "
                    f"used (batches of {row.config.batch_size}"
                    + ("; --batch-size lowers it)" if row.run is None else ", by its recipe; --rows can leave it out)")
                )
    return [row for row in rows if row.scale not in skipped or row.kind in CONTROLS], skipped


def print_estimate(
    rows: list[PlannedRow],
    data_of: Callable[[PlannedRow], Data],
    device: torch.device,
    precision: str,
    *,
    runs: Callable[[PlannedRow], int],
    check: Callable[[], None],
) -> float:
    """Print a line for each planner, timing a few steps of those still to be trained, and what each size costs where
    there are several; return the seconds of it all.

    Args:
        rows: what is to be run.
        data_of: what a row is trained and tested on; steps are timed on it.
        runs: how many seeds of a row are still to be trained.
        check: called between steps; may raise to stop.
    """
    print(
        f"  {'size':6} {'model':34} {'params':>11} {'GFLOP/maze':>10} {'memory':>8} {'steps':>6} {'s/step':>7}"
        "  time per seed"
    )
    seconds_of: dict[str, float] = {}  # by size: of what is not finished
    memory_of: dict[str, int] = {}  # of the planner that needs most
    for row in filter(lambda row: row.trained, rows):
        with torch.device("meta"):
            model = build(row.planner, row.config.maze_size)
        config, data = row.config, data_of(row)
        gflop = gflop_per_maze(model, evaluation_passes(model, config))
        steps = config.total_steps(data.n_train)
        time, seconds, each = f"{'-':>7}  finished", 0.0, None
        if runs(row):
            with contextlib.suppress(Diverged):
                each = seconds_per_maze(row, data.train, device=device, precision=row.precision(precision), check=check)
            time = f"{'-':>7}  not known: the loss of a timed step is not finite"
        if each is not None:
            # To recondition is a forward pass for each cell of a path.
            forwards = 1 if config.decode_used == "table" else float(data.test.length.double().mean())
            validated = forwards * validations(config) * (len(data.validation) if data.validation else 0)
            forwards += interventions(row, len(data.test))
            tested = (forwards * len(data.test) + validated) * _forward_share(row, data)
            seconds = each * (config.epochs * data.batches.mazes_per_epoch + tested)
            time = f"{each * min(config.batch_size, data.n_train):>7.2g}  {describe_seconds(seconds)}"
        memory = _memory(row, device, precision)
        seconds_of[row.scale] = seconds_of.get(row.scale, 0.0) + runs(row) * seconds
        memory_of[row.scale] = max(memory_of.get(row.scale, 0), memory)
        print(
            f"  {row.scale or '-':6} {row.model:34} {parameter_count(model):>11,} {gflop:>10.3g} "
            f"{describe_bytes(memory):>8} {steps:>6} {time}"
        )
        print(f"  {'':6}   " + ", ".join(f"{key} {value}" for key, value in row.options.items()), flush=True)
    if len(memory_of) > 1:
        print("each size, all its planners and seeds:")
        for scale, seconds in seconds_of.items():
            print(
                f"  {scale:6} {describe_seconds(seconds) if seconds else 'finished':>12}, "
                f"{describe_bytes(memory_of[scale])} of memory at most"
            )
    return sum(seconds_of.values())


def _forward_share(row: PlannedRow, data: Data) -> float:
    """What a test maze costs, in mazes of the training: a forward pass is a third of a step, per pass and cell."""
    config = row.config
    cells = data.test.mazes.n_cells / data.train.mazes.n_cells
    if row.planner.R == 1:
        return cells / 3
    run = config.mean_passes()
    return cells * config.test_passes / (run + 2 * config.graded(run))


def warnings_of(config: BenchmarkConfig, mazes: int) -> list[str]:
    """What a user must know before, and a reader after, a run on so many training mazes."""
    warnings = config.ineffective()
    if config.quick:
        warnings.append(
            "--quick preset: small planners and few steps, far below the full benchmark; its figures "
            "show that everything works, not how good the planners get"
            + (
                ", but for the solvers, which are those of docs/solve.md after a part of their training"
                if set(config.row_names) & set(SOLVERS)
                else ""
            )
        )
    warmup = warmup_warning(
        total_steps=config.total_steps(mazes),
        peak=config.lr,
        warmup_steps=config.warmup_steps,
        from_zero=protocol_of(config).rate_from_zero,
    )
    return [*warnings, warmup] if warmup and trained_by_the_run(config) else warnings


def _memory(row: PlannedRow, device: torch.device, precision: str) -> int:
    config = row.config
    batch = config.batch_size if config.train == "online" else min(config.batch_size, config.train)
    passes = config.graded(config.most_passes()) if row.planner.R > 1 and config.R > 1 else None
    return training_memory(
        row.planner, config.size_range[1], batch, device=device, precision=row.precision(precision), passes=passes
    )


def seconds_per_maze(
    row: PlannedRow, tasks: MazeTasks, *, device: torch.device, precision: str, check: Callable[[], None]
) -> float:
    """Seconds of training per maze, from two steps of a whole batch or of as many mazes as fit the time for it.

    The planner trained here is thrown away, and no generator of the run is touched.
    """
    model = row.build(0, device)
    mean = max(1, round(row.config.mean_passes()))  # of the run, where each step draws its own number

    def train(mazes: int, steps: int) -> float:
        config = dataclasses.replace(row.config, epochs=steps, train_R=(mean, mean), train_R_growth=None)
        took = train_planner(
            model, tasks[:mazes], config, seed=0, label="timing", precision=precision, check=check, quiet=True
        )
        return took.seconds / (steps * mazes)

    train(1, 1)  # the first step also loads code and allocates
    one = train(1, 1)
    mazes = min(len(tasks), row.config.batch_size, int(BUDGET / 2 / one))
    return one if mazes <= 1 else train(mazes, 2)


def describe_seconds(seconds: float) -> str:
    """Two units at most: 42 s, 3 min 10 s, 5 h 20 min, 2 d 3 h."""
    s = round(seconds)
    for unit, name, lower_unit, lower in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if s >= unit:
            rest = s % unit // lower_unit
            return f"{s // unit} {name}" + (f" {rest} {lower}" if rest else "")
    return f"{seconds:.2g} s" if s < 10 else f"{s} s"


@functools.lru_cache(maxsize=256)  # a second or more each, and asked for twice
def training_memory(
    planner: PlannerConfig, size: int, batch: int, *, device: torch.device, precision: str, passes: int | None = None
) -> int:
    """Bytes that a training step needs at its peak, on so many mazes, with gradients through so many passes (None: the
    planner's own number).

    16 bytes per parameter (float32 weight, gradient, AdamW's two moments); what autograd keeps of the forward pass,
    and a quarter more, which the allocator leaves unused between tensors; as much as the five largest kept tensors for
    the backward pass's own. Within a fifth of the measured growth of the process for tiny to medium planners on a
    CPU. Run on fake tensors: no arithmetic, no memory.
    """
    place = device if device.type in ("cpu", "cuda") else torch.device("cpu")
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with FakeTensorMode(), torch.device(place):
        model = build(planner, size).train()
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        cells = torch.zeros(batch, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), autocast(place, precision):
            out = model.unchecked_states(OnlyShapes(batch, size, size, place), cells, cells, (passes or planner.R,))
        sizes = sorted((s.nbytes() for key, s in kept.items() if key not in weights), reverse=True)
        del out
    parameters = sum(p.numel() for p in model.parameters())
    return 16 * parameters + int(FRAGMENTED * sum(sizes)) + sum(sizes[:5]) + FIXED


def available_memory(device: torch.device, *, meminfo: Path = Path("/proc/meminfo"), cgroups: Path = _CGROUPS) -> int:
    """Bytes free on the device; on the CPU what the kernel could give and the container may take, the smaller."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        if not hasattr(os, "sysconf"):  # Windows: not known, so that nothing is skipped
            return sys.maxsize
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):  # cgroups v2, v1
        try:
            free = min(free, int((cgroups / limit).read_text()) - int((cgroups / used).read_text()))
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
    return max(free, 0)


def describe_bytes(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
