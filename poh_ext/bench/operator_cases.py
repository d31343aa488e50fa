"""Timed cases of the operators: the losses, dense and linear, routing and neighbour attention, forward and backward."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

import poh_ext
from poh_ext.bench import baselines
from poh_ext.bench.case import OURS, Case, close, with_gradients

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # 2e-2 for half types
SMOOTHING = 0.1


def maze_paths(batch, size, length, device, seed=0):
    """Shortest paths of dfs mazes, cut to `length` cells, and the candidates, as the loss gets them in training."""
    least = min(length, int(0.35 * size * size))
    tasks = poh_ext.sample_tasks(batch, size, min_path=least, seed=seed, device=device)
    path = torch.nn.functional.pad(tasks.path, (0, max(0, length - tasks.path.size(1))), value=-1)[:, :length]
    return path.contiguous(), tasks.mazes.neighbors()


def _problem(batch, rows, classes, length, horizons, kind, device):
    """(targets, options, rows read). "masked", "moves" and "paths" read the cells of maze paths; "text" reads every
    row."""
    options = {"horizons": horizons, "label_smoothing": SMOOTHING}
    if kind == "text":
        generator = torch.Generator().manual_seed(1)
        return torch.randint(classes, (batch, length), generator=generator).to(device), options
    targets, candidates = maze_paths(batch, int(rows**0.5), length, device)
    options["rows"] = targets
    if kind == "masked":  # the mask, made beforehand: the eager forms must not pay for building it
        options["valid"] = baselines.valid_mask(candidates, classes)
    if kind == "moves":
        options["candidates"] = candidates
    return targets, options


def plain_forms(device: torch.device) -> tuple[dict[str, Callable], dict[str, Callable]]:
    """cross_entropy and what stands beside it, and the forms of other projects, which have kernels for GPUs only."""
    forms = {
        OURS: poh_ext.cross_entropy,
        "F.cross_entropy": F.cross_entropy,
        "torch.compile": torch.compile(F.cross_entropy),
    }
    return forms, {"Liger, of a copy": baselines.liger_cross_entropy} if device.type == "cuda" else {}


def linear_forms(device: torch.device) -> tuple[dict[str, Callable], dict[str, Callable]]:
    """The same of linear_cross_entropy."""
    forms = {
        OURS: poh_ext.linear_cross_entropy,
        "F.linear + cross_entropy": baselines.linear_then_cross_entropy,
        "chunked": baselines.chunked_linear_cross_entropy,
    }
    if device.type != "cuda":
        return forms, {}
    forms["F.linear + torch.compile"] = torch.compile(baselines.linear_then_cross_entropy)
    return forms, {
        "Liger": baselines.liger_linear_cross_entropy,
        "cut-cross-entropy": functools.partial(baselines.cut_linear_cross_entropy, filter_eps="high"),
        "the same, exact": baselines.cut_linear_cross_entropy,
    }


def loss_cases(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(size name, builder) of the dense loss."""

    def case(size, batch, rows, classes, length, horizons, kind):
        def build() -> Case:
            generator = torch.Generator().manual_seed(0)
            logits = torch.randn(batch, rows, classes, generator=generator).to(device, dtype).requires_grad_()
            targets, options = _problem(batch, rows, classes, length, horizons, kind, device)

            def ours(x, t, **options):
                return poh_ext.multi_horizon_cross_entropy(x, t, ignore_index=-1, **options)

            rivals = {
                "eager": baselines.eager_cross_entropy,
                "torch.compile": torch.compile(baselines.eager_cross_entropy),
            }
            if kind != "masked":
                rivals["F.cross_entropy each"] = baselines.per_horizon_cross_entropy
            variants = {
                name: with_gradients(f, (logits, targets), **options) for name, f in {OURS: ours, **rivals}.items()
            }
            # Forward and backward read the rows in use; the backward writes the whole gradient once.
            traffic = logits.element_size() * batch * classes * (2 * length + rows)
            label = f"loss {size} B{batch} N{rows} V{classes} L{length} K{horizons}"
            return Case("loss", label, variants, close(TOLERANCE.get(dtype, 2e-2)), traffic)

        return size, build

    def plain(size, rows, classes):
        """F.cross_entropy, as others' training code calls it."""

        def build() -> Case:
            generator = torch.Generator().manual_seed(0)
            logits = torch.randn(rows, classes, generator=generator).to(device, dtype).requires_grad_()
            target = torch.randint(classes, (rows,), generator=generator).to(device)
            forms, foreign = plain_forms(device)
            variants = {name: with_gradients(form, (logits, target), label_smoothing=SMOOTHING)
                        for name, form in (forms | foreign).items()}  # fmt: skip
            # The forward pass reads the logits, the backward pass reads them and writes the gradient.
            traffic, label = 3 * logits.element_size() * logits.numel(), f"cross_entropy [{rows}, {classes}]"
            compare = close(TOLERANCE.get(dtype, 2e-2))
            return Case("loss", label, variants, compare, traffic, foreign=frozenset(foreign))

        return size, build

    yield case("maze12", 32, 144, 144, 65, 1, "masked")
    yield case("maze30", 64, 900, 900, 200, 3, "paths")
    yield case("lm", 8, 512, 32000, 512, 4, "text")
    yield plain("plain1k", 65536, 1024)
    yield plain("plain32k", 4096, 32000)


def linear_cases(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(size name, builder) of the loss of a linear head, from hidden states."""

    def case(size, batch, rows, classes, length, horizons, width, kind):
        def build() -> Case:
            generator = torch.Generator().manual_seed(0)
            hidden = torch.randn(batch, rows, width, generator=generator).to(device, dtype).requires_grad_()
            weight = (torch.randn(classes, width, generator=generator) * width**-0.5).to(device, dtype)
            weight.requires_grad_()
            targets, options = _problem(batch, rows, classes, length, horizons, kind, device)

            def ours(h, w, t, **options):
                return poh_ext.multi_horizon_linear_cross_entropy(h, w, t, ignore_index=-1, **options)

            rivals = {
                "linear + eager": baselines.eager_linear_cross_entropy,
                "linear + torch.compile": torch.compile(baselines.eager_linear_cross_entropy),
            }
            if kind == "text":
                rivals["F.linear_cross_entropy"] = baselines.torch_linear_cross_entropy
            variants = {
                name: with_gradients(f, (hidden, weight, targets), **options)
                for name, f in {OURS: ours, **rivals}.items()
            }
            # Three products: logits, and the gradients of hidden and weight. Candidates need at most 4 columns.
            columns = 4 if kind == "moves" and horizons == 1 else classes
            flops = 6 * batch * length * columns * width
            label = f"linear loss {size} B{batch} N{rows} V{classes} L{length} K{horizons} D{width}"
            return Case("linear", label, variants, close(TOLERANCE.get(dtype, 2e-2) * 10), flops=flops)

        return size, build

    def plain(size, rows, classes, width):
        """F.linear_cross_entropy, and its chunked form."""

        def build() -> Case:
            generator = torch.Generator().manual_seed(0)
            state = torch.randn(rows, width, generator=generator).to(device, dtype).requires_grad_()
            head = (torch.randn(classes, width, generator=generator) * width**-0.5).to(device, dtype).requires_grad_()
            target = torch.randint(classes, (rows,), generator=generator).to(device)
            forms, foreign = linear_forms(device)
            variants = {name: with_gradients(f, (state, head, target)) for name, f in (forms | foreign).items()}
            return Case(
                "linear",
                f"linear_cross_entropy [{rows}, {width}] x [{classes}, {width}]",
                variants,
                close(TOLERANCE.get(dtype, 2e-2) * 10),
                flops=6 * rows * classes * width,
                foreign=frozenset(foreign),
            )

        return size, build

    yield case("maze30", 64, 900, 900, 200, 3, 512, "paths")
    yield case("maze30-moves", 64, 900, 900, 200, 1, 512, "moves")
    yield case("lm", 8, 512, 32000, 512, 4, 1024, "text")
    yield plain("plain32k", 4096, 32000, 1024)
    yield plain("plain128k", 2048, 128256, 1024)


def routing_cases(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(size name, builder) of softmax weights with entropy, forward and backward."""

    def case(name, rows, heads):
        def build() -> Case:
            generator = torch.Generator().manual_seed(0)
            logits = torch.randn(rows, heads, generator=generator).to(device, dtype).requires_grad_()
            upstream = [torch.randn(shape, generator=generator).to(device, dtype) for shape in ((rows, heads), (rows,))]

            def both_passes(route):
                def call():
                    results = route(logits, 1.3)
                    return (*(x.detach() for x in results), *torch.autograd.grad(results, [logits], upstream))

                return call

            forms = {
                OURS: lambda x, t: poh_ext.route(x, temperature=t),
                "eager": baselines.eager_route,
                "torch.compile": torch.compile(baselines.eager_route),
            }
            variants = {name: both_passes(route) for name, route in forms.items()}
            traffic = logits.element_size() * rows * (heads * 5 + 2)
            return Case("routing", f"route [{rows}, {heads}]", variants, close(TOLERANCE.get(dtype, 3e-2)), traffic)

        return name, build

    yield case("tokens", 32 * 144, 6)
    yield case("wide", 8192, 16)


DENSE_CELLS = 2000  # beyond, the mask and the weights of the dense form are gigabytes
ATTENTION_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}  # 5e-2: half types


def gathered_attention(q, k, v, slots, absent, bias, key_offset, value_offset):
    """Attention in its gather form. slots [B, N, C + 1]: the cell, then the candidates; absent [B, 1, N, C + 1]."""
    index = slots.flatten(1)[:, None, :, None].expand(-1, q.size(1), -1, q.size(3))
    keys = k.gather(2, index).unflatten(2, slots.shape[1:]) + key_offset[:, None]
    values = v.gather(2, index).unflatten(2, slots.shape[1:]) + value_offset[:, None]
    scores = torch.einsum("bhnd,bhnsd->bhns", q, keys) / math.sqrt(q.size(3)) + bias[:, None]
    weights = scores.masked_fill(absent, -torch.inf).softmax(-1)
    return torch.einsum("bhns,bhnsd->bhnd", weights, values)


def attention_cases(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(size name, builder) of each case. "offsets": with all tables. "plain": without tables, as in the dense form."""

    def case(name, batch, size, heads, d_head, offsets):
        def build() -> Case:
            generator = torch.Generator().manual_seed(0)

            def floats(*shape):
                return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()

            cells = size * size
            # Views of a packed projection, as a model has them.
            packed = floats(batch, cells, 3, heads, d_head)
            tables = [floats(heads, 5), floats(heads, 5, d_head), floats(heads, 5, d_head)] if offsets else []
            upstream = torch.randn(batch, heads, cells, d_head, generator=generator).to(device, dtype)
            mazes = poh_ext.generate_mazes(batch, size, device=device)
            neighbors = mazes.neighbors()
            # What the rivals need instead of the list is made beforehand: they must not pay for building it.
            own = torch.arange(cells, device=device)[None, :, None].expand(batch, cells, 1)
            slots = torch.cat([own, torch.where(neighbors < 0, own, neighbors)], -1)
            absent = torch.cat([torch.zeros_like(own, dtype=torch.bool), neighbors < 0], -1)[:, None]

            def variant(attend):
                def call():
                    out = attend(*packed.permute(2, 0, 3, 1, 4).unbind())
                    return (out.detach(), *torch.autograd.grad(out, [packed, *tables], upstream))

                return call

            def ours(q, k, v):
                named = dict(zip(("bias", "key_offset", "value_offset"), tables, strict=False))
                return poh_ext.neighbor_attention(q, k, v, neighbors, **named)

            def gather(function):
                zeros = tables or [
                    torch.zeros((), device=device, dtype=dtype).expand(heads, 5, *w) for w in ((), (d_head,), (d_head,))
                ]
                return lambda q, k, v: function(q, k, v, slots, absent, *zeros)

            rivals = {
                "eager gather": gather(gathered_attention),
                "torch.compile": gather(torch.compile(gathered_attention)),
            }
            if not offsets and cells <= DENSE_CELLS:
                allowed = (mazes.valid_mask() | torch.eye(cells, dtype=torch.bool, device=device)).unsqueeze(1)
                rivals["dense masked SDPA"] = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, allowed)
            variants = {name: variant(f) for name, f in {OURS: ours, **rivals}.items()}
            # Forward: q, k, v in, out and weights out; backward: q, k, v, gradient and weights in, three gradients out.
            traffic = packed.element_size() * batch * heads * cells * (11 * d_head + 10)
            label = f"neighbour attention {name} B{batch} N{cells} H{heads} Dh{d_head}"
            return Case("attention", label, variants, close(ATTENTION_TOLERANCE.get(dtype, 5e-2)), traffic)

        return name, build

    yield case("maze12", 32, 12, 4, 12, True)
    yield case("maze12-plain", 32, 12, 4, 12, False)
    yield case("maze30", 8, 30, 8, 32, True)
    yield case("maze30-plain", 8, 30, 8, 32, False)
    yield case("maze201", 1, 201, 4, 12, True)
