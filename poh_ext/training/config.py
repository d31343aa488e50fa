"""The options of the benchmarks: a dataclass for each program, with a common base. The command line is made from them.

Every field is one flag, and its docstring is the help of the flag. `check()` rejects options that cannot be run,
before any work. The flag table in experiments/TRAINING_ENHANCEMENTS.md has the same defaults.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from poh_ext._checks import ceil_of
from poh_ext.mazes import DENSITY, KINDS
from poh_ext.models import SHAPES, PlannerShape
from poh_ext.models.config import PlannerOptions
from poh_ext.results import CONTROLS
from poh_ext.training.checks import ConfigError, check, ineffective
from poh_ext.training.presets import QUICK_12X12, QUICK_SCALING, SOLVERS

__all__ = [
    "Benchmark12x12Config",
    "BenchmarkConfig",
    "ConfigError",
    "RowName",
    "ScalingBenchmarkConfig",
    "TrainingOptions",
    "path_cells",
]

RowName = Literal[
    "random",
    "random_table",
    "beeline",
    "untrained_baseline",
    "untrained_poh",
    "baseline",
    "poh",
    "looped_baseline",
    "poh_shallow",
    "poh_token",
    "looped_solver",
    "poh_solver",
]
ABLATION_ROWS = ("random", "untrained_baseline", "untrained_poh", "baseline", "poh", "looped_baseline", "poh_shallow")
SizeName = Literal["tiny", "small", "medium", "large", "xl"]


def _in_order(config_type: type) -> type:
    """The same dataclass with its fields in the order of the help: what a run is first, then the planners' shape, their
    options, and the training beyond the published form. The fields of a base would come before them."""
    fields = config_type.__dataclass_fields__
    bases = (BenchmarkConfig, config_type, PlannerOptions, TrainingOptions)
    own = [[name for name in vars(base)["__annotations__"] if name in fields] for base in bases]
    first = dict.fromkeys(name for name in own[0] if name not in own[2])
    order = [*first, *own[1], *own[2], *own[3]]
    config_type.__dataclass_fields__ = {name: fields[name] for name in dict.fromkeys(order)}
    return config_type


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of the training data and of the training beyond the published form, which the defaults are. docs/solve.md
    describes which of them make a planner that solves mazes; --preset solve sets these."""

    supervision: Literal["path", "all"] = "path"
    """Cells that get a target. path: the cells of the true path. all: every cell within --reach of the goal gets its
    next move toward the goal (needs --head moves). With all and --train online, start and goal are any cells, and
    --min-path holds for the test mazes only."""
    reach: Literal["passes", "seen", "all"] = "passes"
    """Cells that --supervision all trains. passes: cells at most as many moves from the goal as passes are run, because
    heads that see neighbours carry information by one cell a pass. seen: also cells whose other ways all end within
    that many moves; a planner can then need fewer passes than moves. all: every cell, which needs heads that see all
    cells."""
    train_R: tuple[int, int] | None = None
    """Lowest and highest number of passes in training [passes]. Each step draws a number between them. None: always
    --R."""
    train_R_growth: int | None = None
    """Number that the upper end of --train-R grows to, linearly from 20 % to 60 % of the steps [passes]. None: no
    growth."""
    train_R_draw: Literal["uniform", "log"] = "uniform"
    """uniform: every number of passes is as likely. log: of every doubling of the number, each part is as likely (low
    numbers are drawn more often), so that a state is often supervised while a message is still on its way."""
    grad_passes: int | Literal["all"] = "all"
    """Passes at the end of a run that gradients flow through [passes, or all]. Earlier passes run without a graph."""
    test_R: int | Literal["R"] = "R"
    """Passes at test [passes]. R: the same as --R."""
    tolerance: float = 0.0
    """Largest change of a state that counts as none at test [units of the state]. A cell that a pass changes by no
    more, in every feature, keeps its state and rests until a neighbour changes. If all heads see only neighbours, cells
    at rest cost nothing. 0: every pass computes every cell."""
    deep_supervision: int = 1
    """States that the loss is averaged over [count]. They are evenly spread over the passes with gradients and include
    the last state. 1: the last state alone."""
    train_sizes: tuple[int, int] | None = None
    """Smallest and largest side of the training mazes [cells]. Each step draws a side between them. Needs --train
    online, --head moves and --positions none. None: --maze-size."""
    train_sizes_growth: int | None = None
    """Side that the upper end of --train-sizes grows to, linearly from 20 % to 60 % of the steps [cells]: a curriculum.
    None: no growth."""
    state_noise: float = 0.0
    """Gaussian noise that training adds to the state of every cell before the first pass with gradients, unless that is
    the first pass of all [standard deviation; the features of a state have about 1]. Planners with --rest need it.
    Without --rest and with --reach seen it helped larger mazes after 4,000 steps, but not after 12,000 (docs/solve.md).
    0: none."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights [per step, below 1; after n steps at most
    (1 + n) / (10 + n)]. The averaged weights are evaluated and saved. 0: the last weights are."""
    weight_decay: float = 0.01
    """Weight decay of AdamW, on all weights [per step and unit of the learning rate]."""
    validate_every: int = 0
    """Epochs between evaluations on validation mazes [epochs]; one always follows the last epoch. The report then shows
    accuracy over training time. Training gives the same weights, and the time is not counted. 0: never."""
    validation: int = 200
    """Validation mazes of --validate-every [count]. None of them is a training or a test maze."""

    def pass_range(self, step: int, total_steps: int) -> tuple[int, int]:
        """Lowest and highest number of passes that step `step` (from 0) may draw."""
        if self.train_R is None:
            return self.R, self.R
        return _grown(self.train_R, self.train_R_growth, step / total_steps)

    def size_range_at(self, step: int, total_steps: int) -> tuple[int, int]:
        """Smallest and largest side that step `step` (from 0) may draw."""
        return _grown(self.train_sizes or self.size_range, self.train_sizes_growth, step / total_steps)

    def most_passes(self) -> int:
        """The largest number of passes that a step of the training may draw."""
        return max(self.pass_range(step, 100)[1] for step in range(100))

    def graded(self, run):
        """The number of passes with gradients, of `run` passes."""
        return run if self.grad_passes == "all" else min(run, self.grad_passes)

    def mean_passes(self) -> float:
        """The mean number of passes of a step, over the whole training."""
        spans = [self.pass_range(step, 100) for step in range(100)]
        return sum(map(self._mean_of, spans)) / len(spans)

    def _mean_of(self, span: tuple[int, int]) -> float:
        low, high = span
        if self.train_R_draw == "uniform":
            return (low + high) / 2
        # n is drawn with the probability log(1 + 1/n) / log((high + 1) / low).
        return sum(n * math.log1p(1 / n) for n in range(low, high + 1)) / math.log((high + 1) / low)

    @property
    def size_range(self) -> tuple[int, int]:
        """Smallest and largest side of the training mazes, over the whole training."""
        low, high = self.train_sizes or (self.maze_size, self.maze_size)
        return low, self.train_sizes_growth or high

    @property
    def test_passes(self) -> int:
        return self.R if self.test_R == "R" else self.test_R


def path_cells(min_path: float, cells: int) -> int:
    """The least number of cells on a path, at least 2, that `min_path` means in a maze: cells, or up to 1 a share of
    all of its cells.

    Examples:
        >>> path_cells(50, 144), path_cells(0.35, 144)
        (50, 51)
    """
    return max(2, ceil_of(min_path, cells) if min_path <= 1 else math.ceil(min_path))


def _grown(span: tuple[int, int], to: int | None, progress: float) -> tuple[int, int]:
    """`span` with its upper end grown towards `to`, after the share `progress` of the steps."""
    low, high = span
    if to is not None:
        high = round(high + min(max((progress - 0.2) / 0.4, 0.0), 1.0) * (to - high))
    return low, high


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(TrainingOptions, PlannerOptions):
    """Options that every benchmark has."""

    cell_features: Literal[4, 6] = 4  # the published input belongs to --protocol as-published
    train: int | Literal["online"] = 400
    """Training mazes [count]. The run has exactly this many; as-published draws 3x as many and keeps those with a long
    enough path. online: each step makes new mazes, none of them a test maze."""
    test: int = 1000
    """Test mazes [count], none of them in the training set. More mazes give narrower intervals."""
    epochs: int = 30
    """Passes over the training mazes [count]; a checkpoint is written after each."""
    steps_per_epoch: int = 100
    """Steps that count as an epoch with --train online [count]."""
    cpu: bool = False
    """Run on the CPU even if there is an accelerator; the same as --device cpu."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to run on. auto: CUDA if there is one, else MPS, else the CPU."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass; weights stay float32. auto: bfloat16 autocast on CUDA and on CPUs with
    bfloat16 instructions, else float32."""
    lr: float = 1e-3
    """Peak learning rate of AdamW [per step], reached at the end of the warm-up; it decays to a tenth of that."""
    label_smoothing: float = 0.1
    """Probability mass spread over all classes [0 to 1]; with --validity-mask over the allowed moves only."""
    warmup_steps: int = 500
    """Linear learning rate warm-up [steps]; a cosine decay over the rest of the run follows. 0: none."""
    multi_horizon: int = 1
    """Horizons K [moves]: each cell of the path is trained to predict the cells 1..K moves ahead."""
    validity_mask: bool = False
    """Train the next move among passable neighbours only: the loss takes its softmax over them."""
    route_ent_weight: float = 0.0
    """Weight of PoH's routing entropy in the loss [per nat]; a weight above 0 sharpens the choice of heads."""
    ent_anneal: bool = False
    """Lower --route-ent-weight linearly to 0 over the run."""
    routing_intervention: bool = True
    """Test whether PoH's routing matters: evaluate trained PoH planners again with uniform head weights, with those of
    another test maze, and with the mean ones. Each costs a forward pass over the test mazes."""
    seed: int = 42
    """First seed of weights, dropout, data order and training mazes; the test mazes come from seed + 10000."""
    seeds: int = 1
    """Repeats, with the seeds seed, seed+1, ... [count]. From 2 on the report gives means with 95 % intervals."""
    maze_size: int = 12
    """Side of the square mazes [cells]."""
    algorithm: str = "dfs"
    """Kinds of mazes, separated by commas: dfs, wilson, prim, kruskal, percolation, obstacles, open
    (obstacles, of up to 30 % of the cells), braid (dfs with up to 30 % of the remaining walls open) and few-loops (up
    to 5 %). Of several, each step draws one, and the test mazes are of all, equally many."""
    min_path: float = 0.35
    """Least length of the shortest path from start to goal, both counted [cells; up to 1: that share of the maze's
    cells]. Mazes of another side than --maze-size have paths of the same share. In percolation, obstacles and
    open, whose paths are short, 0.4 times as many cells are asked for; in open at most 0.8 times those from corner to
    corner."""
    protocol: Literal["default", "as-published"] = "default"
    """default: the planners see the walls. as-published: the protocol behind the published figures. Planners, validity
    mask and rollout get a grid without walls, and few mazes are tested; wherever random is a row, random_table and
    beeline are, too. The report explains what such figures show."""
    decode: Literal["auto", "table", "recondition"] = "auto"
    """table: one forward pass answers for every cell. recondition: the network runs again at each step. auto:
    table, and recondition for as-published."""
    batch_size: int = 32
    """Mazes per training step [count]."""
    parity: Literal["depth", "width", "none"] = "depth"
    """How PoH gets about as many parameters as the baseline (at most 1.1 times as many). depth: keep the depth, reduce
    the width. width: keep the width, drop layers. none: keep the baseline's shape, with more parameters."""
    rows: tuple[RowName, ...] = ("random", "untrained_baseline", "untrained_poh", "baseline", "poh")
    """Rows of the table, separated by commas or spaces. Controls without a planner: random draws fresh scores at every
    step, random_table follows one table of random scores, beeline always steps nearer to the goal. looped_solver and
    poh_solver are the planners of --preset solve, trained by its recipe whatever the other flags say, and tested on
    the same mazes by the same --decode (12x12 program)."""
    looped_baseline: bool = False
    """Add the compute-matched control: the baseline, run R times over its stack with the same weights."""
    ablation: bool = False
    """Test whether depth or the passes help: add the looped baseline (compute-matched) and a shallow PoH (width kept,
    layers dropped), on the same mazes and seeds. The report states whether "depth > width" holds."""
    ablate: bool = False
    """Measure what each feature is worth: train baseline and PoH as chosen, and again with one feature changed at a
    time: multi-horizon, label smoothing, warm-up, maze encoder, validity mask (and PoH's routing entropy weight)."""
    quick: bool = False
    """Preset of a few minutes on 2 CPU cores: small planners and few steps. Flags given beside it win."""
    preset: Literal["none", "solve"] = "none"
    """solve: the planners and the training that solve mazes (docs/solve.md). It changes the defaults of other flags;
    flags given beside it win. With --quick, the training takes some minutes."""
    dry_run: bool = False
    """Print the plan (models, parameters, memory, estimated time) and stop; nothing is trained or written. Of an
    interrupted run in --output it is the plan of what is left."""
    output: Path = Path("experiments/results/benchmark")
    """Folder for results.json, report.md and plots. An interrupted run of the same options in it is continued;
    if it holds anything else, a numbered sibling is used instead."""
    overwrite: bool = False
    """Replace the files of an earlier run in --output, even of an interrupted one."""
    resume: bool = False
    """Continue the run in --output, or fail with the reason. No other run is started."""
    tensorboard: bool = False
    """Write losses, pictures of rollouts and hyper-parameters for TensorBoard into --output (needs the extra
    poh_ext[tensorboard])."""
    ray: str = "off"
    """Run rows and seeds side by side on Ray (needs the extra poh_ext[sweep]). local: start Ray on this machine. auto:
    use the cluster that this machine belongs to. HOST:PORT: use that cluster. off: do without Ray."""
    save_weights: bool = False
    """Keep the weights of each trained planner in the weights folder of --output."""

    parity_rule: ClassVar[str] = "scale"  # how PoH is narrowed: see models.match_width

    quick_defaults: ClassVar[dict[str, Any]] = {}  # what --quick changes: see presets.with_presets

    @property
    def title(self) -> str:
        return f"Plain transformer against Pointer-over-Heads on {self.maze_size}x{self.maze_size} mazes"

    @property
    def cells(self) -> int:
        return self.maze_size**2

    def total_steps(self, mazes: int) -> int:
        """Optimiser steps of a run on `mazes` training mazes; the last batch of an epoch may be smaller."""
        return self.epochs * (self.steps_per_epoch if self.train == "online" else math.ceil(mazes / self.batch_size))

    @property
    def min_path_cells(self) -> int:
        """Least number of cells on a shortest path of dfs mazes, both ends counted."""
        return self.min_path_at(self.maze_size)

    @property
    def min_path_words(self) -> str:
        """Least number of cells on a shortest path of the test, for each kind where they differ."""
        kinds: dict[int, list[str]] = {}
        for kind in self.kinds:
            kinds.setdefault(self.min_path_at(self.maze_size, kind), []).append(kind)
        several = [f"{least} ({', '.join(of)})" if len(kinds) > 1 else f"{least}" for least, of in kinds.items()]
        return f"{' or '.join(several)} cells or more"

    def min_path_at(self, size: int, kind: str = "dfs") -> int:
        """`min_path_cells` in mazes of side `size`, of that kind."""
        cells = self.min_path * size**2
        if self.min_path > 1:
            cells /= self.cells
        if KINDS[kind]["algorithm"] in DENSITY:
            cells *= 0.4
        if kind == "open":  # from corner to corner it is no farther
            cells = min(cells, 0.8 * (2 * size - 1))
        return max(2, ceil_of(cells, 1))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of mazes of --algorithm, each once."""
        return tuple(dict.fromkeys(name.strip() for name in self.algorithm.split(",")))

    @property
    def shapes(self) -> dict[str, PlannerShape]:
        """Shape of the baseline of each size to run; the size is "" where a benchmark has one only."""
        raise NotImplementedError

    @property
    def row_names(self) -> tuple[str, ...]:
        """Names of the rows to run, in the order of the table, each once."""
        asked = ABLATION_ROWS if self.ablation else self.rows
        asked = (*asked, *(("looped_baseline",) if self.looped_baseline else ()))
        if self.protocol == "as-published":
            asked = (*asked, *(CONTROLS if "random" in asked else ()))
        if self.protocol == "as-published" or self.ablate:
            asked = tuple(name for name in asked if name not in SOLVERS)
        return tuple(name for name in RowName.__args__ if name in asked)

    @property
    def decode_used(self) -> str:
        if self.decode == "auto":
            return "recondition" if self.protocol == "as-published" else "table"
        return self.decode

    @property
    def run_seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.seeds))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for results.json."""
        plain = dataclasses.asdict(self)
        return {
            key: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for key, v in plain.items()
        }

    def ineffective(self) -> list[str]:
        """Options that are legal but have no effect in this run: the run prints them before it starts."""
        return ineffective(self)

    def check(self) -> None:
        """Raise ConfigError for the first option that cannot be run."""
        check(self)


@_in_order
@dataclass(frozen=True, kw_only=True)
class Benchmark12x12Config(BenchmarkConfig):
    """The planners at about 7 million parameters on 12x12 mazes."""

    d_model: int = 384
    """Width of the baseline [features]. The width of PoH follows from --parity."""
    n_heads: int = 6
    """Attention heads of the baseline [count]; must divide --d-model."""
    d_ff: int = 1536
    """Hidden width of the baseline's feed-forward layers [features]."""
    depth: int = 4
    """Layers of both planners [count]."""
    output: Path = Path("experiments/results/benchmark_12x12_8m")
    parity_rule: ClassVar[str] = "heads"
    quick_defaults: ClassVar[dict[str, Any]] = QUICK_12X12

    @property
    def shapes(self) -> dict[str, PlannerShape]:
        return {"": PlannerShape(self.d_model, self.n_heads, self.d_ff, self.depth)}


@_in_order
@dataclass(frozen=True, kw_only=True)
class ScalingBenchmarkConfig(BenchmarkConfig):
    """Planners of growing size on one size of maze."""

    train: int | Literal["online"] = 1000
    epochs: int = 50
    maze_size: int = 16
    warmup_steps: int = 2000
    multi_horizon: int = 3
    route_ent_weight: float = 5e-4
    maze_enc: bool = True
    min_path: float = 0.4
    output: Path = Path("experiments/results/parameter_scaling")
    models: tuple[SizeName, ...] = ("tiny", "small", "medium", "large", "xl")
    """Model sizes to compare, separated by commas or spaces. Each has a baseline and a PoH of equal size."""
    quick_defaults: ClassVar[dict[str, Any]] = QUICK_SCALING

    @property
    def title(self) -> str:
        return f"{super().title}, by size"

    @property
    def shapes(self) -> dict[str, PlannerShape]:
        return {size: SHAPES[size] for size in SizeName.__args__ if size in self.models}
