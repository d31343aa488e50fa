"""An invented run of the 12x12 benchmark, shared by the tests of poh_ext.report."""

import numpy as np
import torch
from matplotlib.image import imread

from poh_ext._figures import save_png
from poh_ext.environment import describe_environment
from poh_ext.results import Results, Row
from poh_ext.routing_records import over_mazes


def make_row(model="baseline", trained=True, seed=0, reached=(1, 1, 0, 1), optimal=None, **changes):
    reached = [bool(r) for r in reached]
    optimal = list(reached) if optimal is None else [bool(o) for o in optimal]
    curve = (
        [
            {
                "step": s,
                "epoch": s / 10,
                "loss": 5.0 / s,
                "cross_entropy": 4.9 / s,
                "routing_entropy": 1.5 if model == "poh" else None,
                "lr": 3e-4,
            }
            for s in range(1, 21)
        ]
        if trained
        else []
    )
    values = {
        "model": model,
        "trained": trained,
        "seed": seed,
        "params": 0 if model == "random" else 7_412_688,
        "gflop_per_maze": None if model == "random" else 1.09,
        "steps": 390 if trained else 0,
        "train_seconds": 81.5 if trained else None,
        "train_mazes_per_second": 148.2 if trained else None,
        "eval_mazes_per_second": 911.0,
        "reached": reached,
        "optimal": optimal,
        "moves_correct": 300,
        "moves_total": 400,
        "curve": curve,
        "config": {"depth": 4},
    }
    return Row(**{**values, **changes})


def make_results(rows=None, lengths=(50, 61, 70, 83), **changes):
    rows = [make_row()] if rows is None else rows
    seeds = {row.seed for row in rows} or {0}
    sets = {s: {"n": len(lengths), "path_lengths": list(lengths), "n_train": 400} for s in seeds}
    values = {
        "experiment": "12x12",
        "protocol": "default",
        "config": {"epochs": 30, "lr": 3e-4},
        "command": "python run.py --epochs 30",
        "environment": describe_environment(),
        "rows": rows,
        "test_sets": sets,
    }
    return Results(**{**values, **changes})


def make_run(seeds=(0,), n=57, looped=False, **changes):
    """Every row of a benchmark; outcomes drawn with the shares of solved mazes given below."""
    shares = {
        ("baseline", True): 0.58,
        ("poh", True): 0.63,
        ("baseline", False): 0.42,
        ("poh", False): 0.4,
        ("random", False): 0.45,
    }
    if looped:
        shares |= {("looped_baseline", True): 0.61, ("looped_baseline", False): 0.0}
    rows, lengths = [], {}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        lengths[seed] = rng.integers(50, 100, n).tolist()
        for (model, trained), share in shares.items():
            reached = rng.random(n) < share
            rows.append(make_row(model, trained, seed, reached, reached & (rng.random(n) < 0.85)))
    sets = {s: {"n": n, "path_lengths": lengths[s], "n_train": 306} for s in seeds}
    return make_results(rows, **{"test_sets": sets, **changes})


SIZES = {"tiny": (533_568, 561_921), "small": (2_638_272, 2_667_605), "xl": (101_830_592, 111_935_985)}


def make_scaling(scales=("tiny", "small", "xl"), seeds=(0,), n=60, gain=0.2, ablation=False, share=0.3):
    """A run of several sizes, in which PoH solves what the baseline solves and `gain` of all mazes more."""
    rows, sets = [], {}
    for seed in seeds:
        sets[seed] = {"n": n, "path_lengths": [100 + 70 * i // n for i in range(n)], "n_train": 500}
        hard = np.random.default_rng(seed).permutation(n)
        for k, scale in enumerate(scales):
            baseline, poh = SIZES[scale]
            models = {"baseline": (baseline, 0), "poh": (poh, gain)}
            if ablation:
                models |= {
                    "looped_baseline": (baseline, gain),
                    "poh_shallow": (poh + 9000, gain / 2),
                    "poh_token": (poh, gain / 3),
                }
            for model, (params, more) in models.items():
                for trained in (True, False):
                    solved = hard < round(n * (share + 0.1 * k + more if trained else 0.05))
                    config = {"n_heads": 4, "depth": 2}
                    rows.append(make_row(model, trained, seed, solved, params=params, scale=scale, config=config))
        rows.append(make_row("random", False, seed, hard < round(0.1 * n)))
    return make_results(rows, test_sets=sets)


STUDIED = 300  # mazes


def study_record(seed=0, near=2, passes=3, depth=1, drop=60, **changes):
    """A planner that reaches mazes 0 ... 199, with uniform weights `drop` of them fewer, and with another maze's one
    more; its neighbour heads lose weight from pass to pass."""
    first = torch.linspace(0.4, 0.1, passes)[:, None, None] + torch.linspace(-0.01, 0.01, 11)
    weights = torch.stack([first, first, 0.5 - first, 0.5 - first], -1).expand(-1, depth, -1, -1)

    def outcome(reached):
        solved = [i < reached for i in range(STUDIED)]
        return {"reached": solved, "optimal": solved}

    return {
        "model": "poh", "scale": "", "seed": seed, "weights": [[[0.4, 0.3, 0.2, 0.1]] * depth] * passes, "entropy": 1.0,
        "over_mazes": over_mazes(weights, list(range(1, passes + 1)), near),
        "interventions": {"unchanged": outcome(200), "uniform": outcome(200 - drop), "shuffled": outcome(201),
                          "frozen": outcome(200)}, **changes}  # fmt: skip


def make_study(records, random=True, reached=200):
    rows = []
    for record in records:
        solved = [i < reached for i in range(STUDIED)]
        rows.append(make_row(record["model"], seed=record["seed"], reached=solved, scale=record["scale"]))
        if random and record["seed"] not in {row.seed for row in rows if row.model == "random"}:
            rows.append(make_row("random", False, record["seed"], [i < 50 for i in range(STUDIED)]))
    return make_results(rows, lengths=[50] * STUDIED, routing=records)


def carve(n, height, width, seed=0):
    """Depth-first mazes as passage bits, with start and goal in opposite corners, written for the tests alone."""
    rng = np.random.default_rng(seed)
    passages = np.zeros((n, height, width), dtype=np.uint8)
    moves = ((1, 2, -1, 0), (2, 1, 1, 0), (4, 8, 0, -1), (8, 4, 0, 1))  # bit, opposite, row, column
    for maze in passages:
        stack, seen = [(0, 0)], {(0, 0)}
        while stack:
            r, c = stack[-1]
            options = [
                m
                for m in moves
                if 0 <= r + m[2] < height and 0 <= c + m[3] < width and (r + m[2], c + m[3]) not in seen
            ]
            if not options:
                stack.pop()
                continue
            bit, opposite, dr, dc = options[rng.integers(len(options))]
            maze[r, c] |= bit
            maze[r + dr, c + dc] |= opposite
            seen.add((r + dr, c + dc))
            stack.append((r + dr, c + dc))
    return passages


def walk(passages, start, goal, rng=None):
    """Cells from start to goal: the shortest path, or with `rng` a wandering one that leaves dead ends again."""
    width = passages.shape[1]
    trail, walked, seen = [start], [start], {start}
    while trail[-1] != goal:
        cell = trail[-1]
        bits = int(passages[cell // width, cell % width])
        steps = [cell + d for bit, d in ((1, -width), (2, width), (4, -1), (8, 1)) if bits & bit]
        steps = [s for s in steps if s not in seen]
        if not steps:
            trail.pop()
            walked.append(trail[-1])
            continue
        step = steps[0 if rng is None else rng.integers(len(steps))]
        seen.add(step)
        trail.append(step)
        walked.append(step)
    return trail if rng is None else walked


def pad(paths):
    out = np.full((len(paths), max(map(len, paths))), -1)
    for row, path in zip(out, paths, strict=True):
        row[: len(path)] = path
    return out


def markdown(table):
    """A table and its notes as report.md should have them."""
    align = ["---"] * table.left + ["---:"] * (len(table.header) - table.left)
    lines = ["| " + " | ".join(cells) + " |" for cells in (table.header, align, *table.rows)]
    return "\n\n".join(["\n".join(lines), *table.notes])


def decode(figure, path):
    """PNG as float [height, width, 3] and a function from an axis' data coordinates to its pixel."""
    image = imread(save_png(figure, path))[..., :3]

    def pixel(axis, x, y):
        column, row = axis.transData.transform((x, y))
        return image[image.shape[0] - 1 - int(row), int(column)]

    return image, pixel


def is_dark(color):
    return color.max() < 0.35
