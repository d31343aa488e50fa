"""The records of PoH's routing in results.json, and their checks.

A record has the weights on one maze and over all test mazes, and the outcomes on the test mazes with other weights.
"""

from __future__ import annotations

import math

import torch

from poh_ext.routing import SUM_TOLERANCE

__all__ = [
    "INTERVENTIONS",
    "check_outcomes",
    "check_routing",
    "head_groups",
    "kept_passes",
    "over_mazes",
    "routing_record",
]

FIELDS = ("model", "scale", "seed", "weights", "entropy")
OPTIONAL = ("passes", "over_mazes", "interventions")  # the first files had none of them
# What the routers' weights are replaced by, for all test mazes; "unchanged" is what the others are held against.
INTERVENTIONS = ("unchanged", "uniform", "shuffled", "frozen")
MOST_PASSES = 24  # are kept of a planner that makes hundreds
BAND = (0.1, 0.9)  # of the mazes


def kept_passes(passes: int) -> list[int]:
    """The passes that are kept, from 1: all, or, of many, the first, the last, and more early than late ones."""
    if passes <= MOST_PASSES:
        return list(range(1, passes + 1))
    ratio = passes ** (1 / (MOST_PASSES - 1))
    return sorted({round(ratio**i) for i in range(MOST_PASSES)})


def head_groups(heads: int, valid_heads: int) -> list[tuple[str, list[int]]]:
    """(name, heads from 0) of the groups of heads: the heads that see neighbours, and those that see all cells, which
    come after them. If all heads are of one kind, each head is a group."""
    if 0 < valid_heads < heads:
        return [("neighbour heads", list(range(valid_heads))), ("wide heads", list(range(valid_heads, heads)))]
    return [(f"head {h + 1}", [h]) for h in range(heads)]


def routing_record(model: str, seed: int, weights: torch.Tensor, entropy: float, scale: str = "") -> dict:
    """A record of `Results.routing`, from `PoHPlanner.routing_weights()` of a forward pass on one maze.

    Args:
        model, seed, scale: fields of the row that it belongs to.
        weights: [R, depth, B, heads], or [R, depth, B, cells, heads] of token routing, which is averaged. Of many
            passes some are kept, and named in the record's "passes".
        entropy: entropy of the same forward pass in nats, averaged over passes, blocks (and cells).

    Raises:
        ValueError: weights have another shape.
    """
    if weights.dim() not in (4, 5) or not weights.numel():
        raise ValueError(f"weights must be [R, depth, B, heads] or [R, depth, B, N, heads], got {list(weights.shape)}")
    kept = kept_passes(len(weights))
    mean = weights[torch.tensor(kept) - 1].detach().double().flatten(2, -2).mean(2)
    record = {"model": model, "scale": scale, "seed": seed, "weights": mean.tolist(), "entropy": float(entropy)}
    return record if len(kept) == len(weights) else {**record, "passes": kept}


def over_mazes(weights: torch.Tensor, passes: list[int], valid_heads: int) -> dict:
    """The record's "over_mazes": mean weight of a head of each group (`head_groups`), and its variation between mazes.

    Args:
        weights: [P, depth, n, heads], of n mazes.
        passes: the P passes, from 1.
        valid_heads: number of heads that see only neighbours; they are the first ones.

    Returns:
        passes, near_heads, heads, and mean, low, high [P][depth][groups]; low and high are the BAND of the mazes.
    """
    groups = head_groups(weights.shape[-1], valid_heads)
    of_group = torch.stack([weights[..., heads].double().mean(-1) for _, heads in groups], -1)
    low, high = (torch.quantile(of_group, q, dim=2) for q in BAND)
    figures = {"mean": of_group.mean(2), "low": low, "high": high}
    return {"passes": passes, "near_heads": valid_heads, "heads": weights.shape[-1],
            **{name: [[[round(x, 5) for x in block] for block in step] for step in values.tolist()]
               for name, values in figures.items()}}  # fmt: skip


def check_routing(records, seeds) -> None:
    """Raise ValueError that names the first record that contradicts itself or its seed's test set in `seeds`."""
    seen = set()
    for i, record in enumerate(records):
        name = f"routing[{i}]"
        if not isinstance(record, dict) or set(record) - set(OPTIONAL) != set(FIELDS):
            raise ValueError(f"{name} must have the fields {', '.join(FIELDS)}, not {_fields(record)}")
        if record["seed"] not in seeds:
            raise ValueError(f"{name} is of seed {record['seed']}, which has no test set")
        key = record["scale"], record["model"], record["seed"]
        if key in seen:
            raise ValueError(f"{name} repeats {' '.join(map(str, key)).strip()}")
        seen.add(key)
        entropy = record["entropy"]
        if entropy is not None and not entropy >= 0:
            raise ValueError(f"{name} has entropy {entropy}, which must be 0 or more")
        _check_weights(name, record["weights"])
        if len(record.get("passes", record["weights"])) != len(record["weights"]):
            raise ValueError(f"{name} names {len(record['passes'])} passes for weights of {len(record['weights'])}")
        if "over_mazes" in record:
            _check_over_mazes(f"{name}: over_mazes", record["over_mazes"])
        for how, outcome in record.get("interventions", {}).items():
            _check_outcome(f"{name}: interventions", how, outcome, seeds[record["seed"]]["n"])


def _check_weights(name: str, weights) -> None:
    try:
        blocks = [block for step in weights for block in step]
        shapes = {(len(step), len(block)) for step in weights for block in step}
        sums = [sum(block) for block in blocks]
        smallest = min((min(block) for block in blocks), default=math.nan)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: weights must be numbers [R][depth][heads] ({error})") from error
    if len(shapes) != 1:
        raise ValueError(f"{name}: weights must be [R][depth][heads] of one depth and number of heads")
    if not smallest >= 0 or not all(abs(total - 1) <= SUM_TOLERANCE for total in sums):
        raise ValueError(f"{name}: weights of a block must be 0 or more and sum to 1 over the heads")


def _check_over_mazes(name: str, record) -> None:
    try:
        passes, groups = len(record["passes"]), len(head_groups(record["heads"], record["near_heads"]))
        for figure in ("mean", "low", "high"):
            shapes = {(len(step), len(block)) for step in record[figure] for block in step}
            wrong = len(record[figure]) != passes or len(shapes) != 1 or {shape[1] for shape in shapes} != {groups}
            if wrong or not all(0 <= w <= 1 for step in record[figure] for block in step for w in block):
                raise ValueError(f"{figure} must be shares [{passes}][depth][{groups}], from 0 to 1")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error!r}" if isinstance(error, KeyError) else f"{name}: {error}") from error


def _check_outcome(name: str, how: str, outcome, n: int) -> None:
    if how not in INTERVENTIONS:
        raise ValueError(f"{name} has {how!r}; known: {', '.join(INTERVENTIONS)}")
    if not isinstance(outcome, dict) or set(outcome) != {"reached", "optimal"}:
        raise ValueError(f"{name}: {how} must have the fields reached, optimal, not {_fields(outcome)}")
    check_outcomes(f"{name}: {how}", outcome["reached"], outcome["optimal"], n)


def check_outcomes(name: str, reached: list[bool], optimal: list[bool], n: int) -> None:
    """Raise ValueError if the outcomes are not those of n mazes, or contradict each other."""
    if not len(reached) == len(optimal) == n:
        raise ValueError(
            f"{name} has {len(reached)} reached and {len(optimal)} optimal outcomes, but its test set has {n} mazes"
        )
    if any(best and not done for done, best in zip(reached, optimal, strict=True)):
        raise ValueError(f"{name} counts a maze as optimal that it did not reach")


def _fields(record) -> str:
    return ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
