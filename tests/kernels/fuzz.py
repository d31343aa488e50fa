"""Random calls of every public function, the kernels and the PyTorch reference side by side.

    python tests/kernels/fuzz.py --calls 100000 --seed 0

Shapes with zeros, strided and expanded tensors, extreme numbers, wrong dtypes, shapes and indices are among them. Both
backends must give the same values and gradients, or the same error: of a type that is documented, with a text that
names an argument. A crash ends the process; the last line of the file given by --log is then the call that did it.
"""

from __future__ import annotations

import argparse
import inspect
import math
import sys
import warnings
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

import poh_ext

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.cases.backends import reference

SIZES = st.sampled_from([0, 1, 1, 2, 2, 3, 4, 5, 9, 17])
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
RAISED = (TypeError, ValueError, IndexError)
RARELY = st.integers(0, 40).map(lambda n: n == 0)


def laid_out(draw, t: torch.Tensor) -> torch.Tensor:
    """The same numbers in another layout."""
    kind = draw(st.sampled_from(["packed", "packed", "transposed", "every other", "offset", "expanded"]))
    if kind == "transposed" and t.dim() > 1:
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == "every other" and t.dim():
        wide = torch.stack([t, torch.zeros_like(t)], -1)
        return wide[..., 0]
    if kind == "offset":
        flat = torch.cat([t.new_zeros(1), t.reshape(-1)])
        return flat[1:].view(t.shape)
    if kind == "expanded" and t.dim() and t.shape[0] > 1:
        return t[:1].expand(t.shape)
    return t


def generator(draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 2**32)))


def floats(draw, shape, dtype, most: float = 1e4) -> torch.Tensor:
    g = generator(draw)
    factors = [
        0.0,
        1.0,
        1.0,
        5.0,
        *(f for f in (100.0, 1e4) if f <= most and dtype != torch.float16),
    ]  # which overflows
    x = torch.randn(shape, generator=g, dtype=torch.float64) * draw(st.sampled_from(factors))
    if draw(RARELY) and x.numel():
        special = draw(st.sampled_from([math.inf, -math.inf, math.nan, *factors[-1:]]))
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = special
    return laid_out(draw, x.to(dtype))


def indices(draw, shape, limit: int, missing: int | None) -> torch.Tensor:
    """In [0, limit), some of them `missing`; rarely out of range."""
    g = generator(draw)
    t = torch.randint(max(limit, 1), shape, generator=g)
    if missing is not None and (limit == 0 or draw(st.booleans())):
        t[torch.rand(shape, generator=g) < draw(st.sampled_from([0.2, 0.5, 1.0]))] = missing
    if draw(RARELY) and t.numel():
        t.view(-1)[draw(st.integers(0, t.numel() - 1))] = draw(st.sampled_from([limit, -1, -2, -7, 10**6, -(2**62)]))
    t = t.to(draw(st.sampled_from([torch.int64] * 6 + [torch.int32]))) if draw(st.booleans()) else t
    return laid_out(draw, t)


def spoil(draw, arguments: dict) -> dict:
    """Rarely: an argument of a wrong kind."""
    if not draw(RARELY):
        return arguments
    name = draw(st.sampled_from(sorted(arguments)))
    value = arguments[name]
    wrong = [None, "text", 1.5, True, [1, 2], -1, 10**20]
    if isinstance(value, torch.Tensor):
        wrong += [
            value[..., :0] if value.dim() else value,
            value.unsqueeze(0),
            value.to(torch.int16),
            value.to(torch.complex64),
            value.double(),
            value.to("meta"),
        ]
    return {**arguments, name: draw(st.sampled_from(wrong))}


def loss_options(draw, classes: int, horizons: int) -> dict:
    options = {
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "z_loss": draw(st.sampled_from([0.0, 0.0, 0.01])),
        "softcap": draw(st.sampled_from([None, None, 3.0])),
        "return_metrics": draw(st.booleans()),
    }
    return {name: value for name, value in options.items() if draw(st.booleans())}


def class_weight(draw, classes: int, dtype):
    g = generator(draw)
    return draw(st.sampled_from([None, None, torch.rand(classes, generator=g).to(dtype), torch.zeros(classes)]))


def masks(draw, rows: tuple, classes: int) -> dict:
    kind = draw(st.sampled_from([None, None, "valid", "candidates"]))
    if kind == "valid":
        return {"valid": laid_out(draw, torch.rand((*rows, classes), generator=generator(draw)) < 0.4)}
    if kind == "candidates":
        return {"candidates": indices(draw, (*rows, draw(SIZES)), classes, -1)}
    return {}


def planning_loss(draw, linear: bool):
    batch, rows, classes, length = (draw(SIZES) for _ in range(4))
    dtype = draw(st.sampled_from(FLOATS))
    horizons = draw(st.sampled_from([1, 2, 3, 12, [0], [1], [0, 2], [1, 2, 4, 8], (3, 1)]))
    count = horizons if isinstance(horizons, int) else len(horizons)
    ignore = draw(st.sampled_from([-100, -1, 0, 2]))
    asked = {"targets": indices(draw, (batch, length), classes, ignore), "horizons": horizons, "ignore_index": ignore,
             "reduction": draw(st.sampled_from(["mean", "sum", "none", "position_mean"]))}  # fmt: skip
    if draw(st.booleans()) or length > rows:
        asked["rows"] = indices(draw, (batch, length), rows, -1)
    if draw(st.integers(0, 3)) == 0:
        asked["segments"] = indices(draw, (batch, length), 3, None)
    if draw(st.integers(0, 3)) == 0:
        asked["horizon_weights"] = [draw(st.sampled_from([0.0, 0.5, 1.0])) for _ in range(count)]
    asked |= masks(draw, (batch, rows), classes) | loss_options(draw, classes, count)
    weight = class_weight(draw, classes, dtype)
    if not linear:
        extra = {} if weight is None else {"weight": weight}
        logits = floats(draw, (batch, rows, classes), dtype)
        return poh_ext.multi_horizon_cross_entropy, {"logits": logits} | asked | extra
    extra = {} if weight is None else {"class_weight": weight}
    width = draw(SIZES)
    shape = (batch, rows, count, width) if draw(st.booleans()) else (batch, rows, width)
    head = {"hidden": floats(draw, shape, dtype), "weight": floats(draw, (classes, width), dtype)}
    if draw(st.booleans()):
        head["bias"] = floats(draw, (classes,), dtype)
    return poh_ext.multi_horizon_linear_cross_entropy, head | asked | extra


def plain_loss(draw, linear: bool):
    places = tuple(draw(SIZES) for _ in range(draw(st.integers(0, 3))))
    classes, dtype = draw(SIZES), draw(st.sampled_from(FLOATS))
    ignore = draw(st.sampled_from([-100, 0, 2]))
    asked = {"target": indices(draw, places, classes, ignore), "ignore_index": ignore,
             "reduction": draw(st.sampled_from(["mean", "sum", "none"]))}  # fmt: skip
    asked |= {
        name: mask if linear or mask.dim() < 2 else mask.movedim(-1, 1)
        for name, mask in masks(draw, places, classes).items()
    } | loss_options(draw, classes, 1)
    if (weight := class_weight(draw, classes, dtype)) is not None:
        asked["weight"] = weight
    if linear:
        width = draw(SIZES)
        head = {"input": floats(draw, (*places, width), dtype), "linear_weight": floats(draw, (classes, width), dtype)}
        if draw(st.booleans()):
            head["linear_bias"] = floats(draw, (classes,), dtype)
        return poh_ext.linear_cross_entropy, head | asked
    shape = (classes,) if not places else (places[0], classes, *places[1:])
    return poh_ext.cross_entropy, {"input": floats(draw, shape, dtype)} | asked


def routing(draw):
    shape = tuple(draw(SIZES) for _ in range(draw(st.integers(1, 3))))
    arguments = {"logits": floats(draw, shape, draw(st.sampled_from(FLOATS))),
                 "temperature": draw(st.sampled_from([1.0, 0.5, 3, 1e-3]))}  # fmt: skip
    if draw(st.booleans()):
        return poh_ext.route, arguments
    return poh_ext.routing_entropy, arguments | {"reduction": draw(st.sampled_from(["mean", "sum", "none"]))}


def attention(draw):
    batch, heads, cells, width, slots = (draw(SIZES) for _ in range(5))
    dtype, most = draw(st.sampled_from(FLOATS)), 5.0  # larger scores differ by more than 1 in their rounding
    arguments = {name: floats(draw, (batch, heads, cells, width), dtype, most) for name in ("q", "k", "v")}
    arguments["candidates"] = indices(draw, (batch, cells, slots), cells, -1)
    for name, shape in (("bias", (heads, slots + 1)), ("key_offset", (heads, slots + 1, width)),
                        ("value_offset", (heads, slots + 1, width))):  # fmt: skip
        if draw(st.booleans()):
            arguments[name] = floats(draw, shape, dtype, most)
    return poh_ext.neighbor_attention, arguments


def a_batch_of_mazes(draw) -> poh_ext.MazeBatch:
    n, height, width = draw(SIZES), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    algorithm = draw(st.sampled_from([*poh_ext.GENERATORS, "open"]))
    if algorithm == "open":
        return poh_ext.MazeBatch.open(n, (height, width))
    return poh_ext.generate_mazes(n, (height, width), algorithm=algorithm, seed=draw(st.integers(0, 99)))


def generation(draw):
    size = draw(st.sampled_from([1, 2, 5, (1, 9), (6, 2), 0, (2,), 2**14]))
    arguments = {"n": draw(SIZES), "size": size, "algorithm": draw(st.sampled_from([*poh_ext.GENERATORS, "none"])),
                 "seed": draw(st.sampled_from([0, 7, 2**63 - 1, -1])),
                 "start_index": draw(st.sampled_from([0, 5, 2**40]))}  # fmt: skip
    if draw(st.booleans()):
        return poh_ext.generate_mazes, arguments
    arguments.pop("start_index")
    arguments |= {"min_path": draw(st.integers(0, 12)), "max_path": draw(st.sampled_from([None, 4, 12]))}
    return poh_ext.sample_tasks, arguments


def graph(draw):
    mazes = a_batch_of_mazes(draw)
    ends = {name: indices(draw, (len(mazes),), mazes.n_cells, None) for name in ("start", "goal")}
    name = draw(st.sampled_from(["distances", "shortest_paths", "neighbors", "valid_mask", "raster"]))
    wanted = {"distances": ("goal",), "shortest_paths": ("start", "goal")}.get(name, ())
    return getattr(mazes, name), {end: ends[end] for end in wanted}


def rollout(draw):
    n, size = draw(st.sampled_from([1, 2, 5])), draw(st.integers(2, 5))
    tasks = poh_ext.sample_tasks(n, size, seed=draw(st.integers(0, 99)))
    columns = draw(st.sampled_from([4, tasks.mazes.n_cells]))
    logits = floats(draw, (n, tasks.mazes.n_cells, columns), draw(st.sampled_from(FLOATS)))
    return poh_ext.greedy_rollout, {"policy_logits": logits, "tasks": tasks,
                                    "max_steps": draw(st.sampled_from([None, 1, 7]))}  # fmt: skip


KINDS = {
    "loss": lambda draw: planning_loss(draw, False),
    "linear loss": lambda draw: planning_loss(draw, True),
    "cross_entropy": lambda draw: plain_loss(draw, False),
    "linear_cross_entropy": lambda draw: plain_loss(draw, True),
    "routing": routing,
    "attention": attention,
    "generation": generation,
    "graph": graph,
    "rollout": rollout,
}


def tensors_of(result) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, poh_ext.MazeBatch):
        return [result.passages]
    if isinstance(result, tuple):
        return [t for part in result for t in tensors_of(part)]
    return [t for part in vars(result).values() for t in tensors_of(part)] if hasattr(result, "__dict__") else []


def outcome(function, arguments: dict):
    """(values, then gradients), or the error."""
    fixed = {"class_weight", "policy_logits"} | ({"weight"} if "hidden" not in arguments else set())
    given = {name: value.detach().requires_grad_() if isinstance(value, torch.Tensor) and value.dtype in FLOATS
             and name not in fixed else value for name, value in arguments.items()}  # fmt: skip
    try:
        values = tensors_of(function(**given))
        total = sum((v.float().nan_to_num(0, 0, 0).sum() for v in values if v.requires_grad), torch.zeros(()))
        leaves = [t for t in given.values() if isinstance(t, torch.Tensor) and t.requires_grad]
        gradients = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad and leaves else []
        return [v.detach() for v in values], [g for g in gradients if g is not None]
    except RAISED as error:
        return error


def magnitude(arguments: dict) -> float:
    """The largest finite number among the arguments: rounding is to be judged by it."""
    found = [
        t.detach().double().nan_to_num(0, 0, 0).abs().max().item()
        for t in arguments.values()
        if isinstance(t, torch.Tensor) and t.is_floating_point() and t.numel() and not t.is_meta
    ]
    return max([1.0, *found])


def difference(function, arguments: dict) -> str:
    """What is wrong with the outcome of a call, or ''."""
    ours = outcome(function, arguments)
    with reference():
        want = outcome(function, arguments)
    for side, found in (("the kernels", ours), ("the reference", want)):
        if isinstance(found, Exception):
            names = [*arguments, *inspect.signature(function).parameters, "passages", "cells", "index"]
            if not any(name in str(found) for name in names):
                return f"an error of {side} names no argument: {type(found).__name__}: {found}"
    if isinstance(ours, Exception) or isinstance(want, Exception):
        same = type(ours) is type(want) and str(ours) == str(want)
        return "" if same else f"kernels: {ours!r}\nreference: {want!r}"
    half = any(isinstance(t, torch.Tensor) and t.dtype in (torch.bfloat16, torch.float16) for t in arguments.values())
    scale = magnitude(arguments)
    logits = scale**2 if {"hidden", "linear_weight"} & set(arguments) else scale  # products of two arguments, there
    wild = any(isinstance(t, torch.Tensor) and t.dtype in FLOATS and not t.is_meta and not t.isfinite().all()
               for t in arguments.values())  # fmt: skip
    if wild and function is poh_ext.neighbor_attention:  # exp(-100) is 0 to the kernels: times infinity that is NaN
        return ""
    if wild and half and {"hidden", "linear_weight"} & set(arguments):
        return ""  # torch's own bfloat16 product of an odd width lets an infinity into the row before (oneDNN, AMX)
    compared = slice(1 if wild else None)  # of infinite logits there is no one largest: not the metrics
    for a, b in zip(ours[0][compared], want[0][compared], strict=True):
        if problem := apart(a, b, 2e-2 if half else 1e-4, logits):
            return f"value: {problem}"
    for a, b in () if wild else zip(ours[1], want[1], strict=True):  # of infinities there is no one true gradient
        if problem := apart(a, b, 5e-2 if half else 1e-3, scale * logits):
            return f"gradient: {problem}"
    return ""


def apart(a: torch.Tensor, b: torch.Tensor, relative: float, scale: float) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype} {list(a.shape)} against {b.dtype} {list(b.shape)}"
    if a.is_meta:
        return ""
    if not a.is_floating_point():
        return "" if torch.equal(a, b) else f"{a.tolist()} against {b.tolist()}"
    a, b = a.double(), b.double()
    near = torch.isclose(a, b, rtol=relative, atol=relative * scale, equal_nan=True)
    return "" if near.all() else f"{a[~near][:5].tolist()} against {b[~near][:5].tolist()}"


def describe(function, arguments: dict) -> str:
    def short(value):
        if isinstance(value, torch.Tensor):
            return f"{value.dtype}{list(value.shape)}/{list(value.stride())}"
        return type(value).__name__ if isinstance(value, poh_ext.MazeTasks) else repr(value)

    return f"{function.__name__}({', '.join(f'{name}={short(value)}' for name, value in arguments.items())})"


def run(calls: int, seed: int, kinds: list[str], log: str | None) -> int:
    """Make the calls; returns how many were made. Raises AssertionError at the first that is wrong."""
    made = 0

    @settings(max_examples=calls, database=None, deadline=None, phases=[Phase.generate, Phase.shrink],
              suppress_health_check=list(HealthCheck), report_multiple_bugs=False)  # fmt: skip
    @given(st.data())
    def one(data):
        nonlocal made
        made += 1
        function, arguments = KINDS[data.draw(st.sampled_from(kinds))](data.draw)
        arguments = spoil(data.draw, arguments) if arguments else arguments
        call = describe(function, arguments)
        if log:
            with open(log, "w") as file:
                file.write(call)
        problem = difference(function, arguments)
        assert not problem, f"{call}\n{problem}"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seeded(seed)(one)()
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of calls, separated by commas")
    parser.add_argument("--log", help="a file that holds the call under way")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{run(options.calls, options.seed, options.only.split(','), options.log)} calls, no difference")


if __name__ == "__main__":
    main()
