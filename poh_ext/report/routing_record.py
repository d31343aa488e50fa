"""What results.json holds of PoH's routing on one maze, and its checks."""

from __future__ import annotations

import math

import torch

__all__ = ["check_routing", "routing_record"]

FIELDS = ("model", "scale", "seed", "weights", "entropy")
# Weights may have been computed and saved in bfloat16, whose steps near 1 are 0.004, and are summed over heads.
SUM_TOLERANCE = 0.02


def routing_record(model: str, seed: int, weights: torch.Tensor, entropy: float, scale: str = "") -> dict:
    """A record of `Results.routing`, from `PoHPlanner.routing_weights()` of a forward pass on one maze.

    Args:
        model, seed, scale: of the row it belongs to.
        weights: [R, depth, B, heads], or [R, depth, B, cells, heads] of token routing, which is averaged.
        entropy: of the same pass, in nats, averaged over passes, blocks (and cells).

    Raises:
        ValueError: weights have another shape.
    """
    if weights.dim() not in (4, 5) or not weights.numel():
        raise ValueError(f"weights must be [R, depth, B, heads] or [R, depth, B, N, heads], got {list(weights.shape)}")
    mean = weights.detach().double().flatten(2, -2).mean(2)
    return {"model": model, "scale": scale, "seed": seed, "weights": mean.tolist(), "entropy": float(entropy)}


def check_routing(records, seeds) -> None:
    """Raise ValueError naming the first record that is not [R][depth][heads] weights of a seed in `seeds`."""
    seen = set()
    for i, record in enumerate(records):
        name = f"routing[{i}]"
        if not isinstance(record, dict) or set(record) != set(FIELDS):
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


def _fields(record) -> str:
    return ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
