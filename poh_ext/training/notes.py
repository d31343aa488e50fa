"""Options that are legal but do nothing in the run they are given for, and what a reader of its table must know."""

from __future__ import annotations

import dataclasses

from poh_ext.results import CONTROLS
from poh_ext.training.presets import SOLVERS
from poh_ext.training.validation import flag

__all__ = ["notes"]


def notes(config) -> list[str]:
    """Sentences about a BenchmarkConfig."""
    rows = set(config.row_names) - set(SOLVERS)  # which follow options of their own
    trained = {name for name in rows if name not in CONTROLS and not name.startswith("untrained_")}
    poh, looped = {name for name in trained if name.startswith("poh")}, trained - {"baseline"}
    found = []
    if set(config.rows) & (set(SOLVERS) - set(config.row_names)) and not config.quick:
        why = "--protocol as-published" if config.protocol == "as-published" else "--ablation or --ablate"
        found.append(f"the rows {' and '.join(SOLVERS)} are left out with {why}")
    if config.ent_anneal and config.route_ent_weight == 0:
        found.append("--ent-anneal does nothing while --route-ent-weight is 0")
    if config.route_ent_weight > 0 and not poh:
        found.append("--route-ent-weight does nothing: no PoH row is trained")
    if config.train != "online" and _chosen(config, "steps_per_epoch"):
        found.append("--steps-per-epoch does nothing without --train online")
    if config.validate_every and not trained and not set(config.row_names) & set(SOLVERS):
        found.append("--validate-every does nothing: no planner is trained")
    elif config.validate_every > config.epochs:
        found.append(f"--validate-every {config.validate_every}: there are {config.epochs} epochs, so that only the "
                     "end of the training is validated")
    if not config.validate_every and _chosen(config, "validation"):
        found.append("--validation does nothing without --validate-every")
    if config.parity == "none" and "poh" in rows:
        found.append("--parity none: PoH has the baseline's shape and more parameters than it")
    if config.parity == "width" and "poh" in rows:
        found.append("--parity width: PoH keeps the baseline's width and has fewer layers than it")
    return found + _levers(config, rows, poh, looped)


def _levers(config, rows: set[str], poh: set[str], looped: set[str]) -> list[str]:
    found = []
    if not poh and "untrained_poh" not in rows:
        found += [f"{flag(name)} does nothing: there is no PoH row"
                  for name in ("residual", "route_scale", "routing") if _chosen(config, name)]
    elif config.routing == "token" and not {"poh", "untrained_poh", "poh_shallow"} & rows:
        found.append("--routing does nothing: the row poh_token has it anyway")
    if config.supervision == "path" and _chosen(config, "reach"):
        found.append("--reach does nothing without --supervision all")
    passes = [name for name in ("train_R", "grad_passes", "test_R", "deep_supervision", "tolerance", "state_noise", "R")
              if _chosen(config, name)]
    if passes and not looped:
        found += [f"{flag(name)} does nothing: all trained planners run one pass" for name in passes]
        return found
    most = config.most_passes()
    if config.grad_passes != "all" and config.grad_passes >= most:
        found.append(f"--grad-passes {config.grad_passes} does nothing: no step runs more than {most} passes")
    if config.state_noise and (config.grad_passes == "all" or config.grad_passes >= most):
        found.append("--state-noise does nothing: all passes have gradients, and it comes before them")
    graded = config.graded(most)
    if config.deep_supervision > graded:
        found.append(f"--deep-supervision {config.deep_supervision}: no more than {graded} passes have gradients, and "
                     "no more states are supervised")
    if config.train_R is not None and config.test_R != "R" and _chosen(config, "R"):
        found.append("--R does nothing beside --train-R and --test-R")
    if set(passes) - {"R"} and "baseline" in rows:
        found.append("the baseline runs one pass whatever the options of passes say: on the same mazes and targets, it "
                     "is the control without a loop; the looped baseline is the recurrent one")
    if config.tolerance and config.R == 1:
        found.append("--tolerance does nothing with --R 1: planners of one pass compute every cell")
    elif config.tolerance:
        planners = [config.planner("poh", shape) for shape in config.shapes.values()]
        found.append(f"--tolerance {config.tolerance:g}: " + (
            "GFLOP per maze counts every cell in every pass, also those at rest"
            if all(p.valid_heads == p.n_heads and p.depth == 1 for p in planners) else
            "it saves time only in planners of one layer whose heads all see neighbours"))
    if config.supervision == "all" and config.train == "online" and _chosen(config, "min_path"):
        found.append("--min-path holds for the test mazes: with --supervision all and --train online the training's "
                     "start and goal are any cells")
    return found


def _chosen(config, name: str) -> bool:
    """Whether the option has another value than the program's default."""
    return getattr(config, name) != next(f.default for f in dataclasses.fields(config) if f.name == name)
