"""The timed cases: each builds its inputs, and names the poh_ext call and its rivals on them.

A case is shared by `python -m poh_ext.bench` and by the pytest-benchmark suites in bench/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

import poh_ext
from poh_ext.bench import baselines

OURS = "poh_ext"


def close(relative: float) -> Callable[[tuple, tuple], str]:
    """Comparison of results: '' when every pair differs by at most `relative` of its largest value."""

    def compare(found, expected) -> str:
        if len(found) != len(expected):
            return f"{len(found)} results where {len(expected)} were expected"
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            if a.shape != b.shape:
                return f"result {i} has shape {tuple(a.shape)}, not {tuple(b.shape)}"
            if not b.numel():
                continue
            a, b = a.double(), b.double()
            difference, limit = (a - b).abs().max().item(), relative * max(b.abs().max().item(), 1e-6)
            if not difference <= limit:  # also true for NaN
                return f"result {i} differs by {difference:.3g}, more than {limit:.3g}"
        return ""

    return compare


@dataclass
class Case:
    """One computation on fixed inputs.

    variants: name -> call returning a tuple of tensors (results, then gradients); OURS is one of them.
    compare: (found, expected) -> '' or why they are not the same computation.
    bytes_moved: least traffic the computation needs (inputs read once, outputs written once), or None.
    flops: floating-point operations of the matrix products, or None where they do not dominate.
    items: name -> things made per call (mazes); empty where a rate means nothing.
    """

    group: str
    name: str
    variants: dict[str, Callable[[], tuple[torch.Tensor, ...]]]
    compare: Callable[[tuple, tuple], str] = field(default_factory=lambda: close(1e-4))
    bytes_moved: int | None = None
    flops: int | None = None
    items: dict[str, int] = field(default_factory=dict)

    def check(self) -> dict[str, str]:
        """Run every variant once and compare it with OURS; return name -> reason for those that cannot run.

        Raises:
            AssertionError: a variant's result differs, so timing it would compare unequal things.
        """
        expected = self.variants[OURS]()
        failed = {}
        for name, call in self.variants.items():
            try:
                found = expected if name == OURS else call()
            except (RuntimeError, ImportError, NotImplementedError) as error:
                failed[name] = f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0][:120]}"
                continue
            if problem := self.compare(found, expected):
                raise AssertionError(f"{self.name}: {name} and {OURS} disagree: {problem}")
        return failed


def with_gradients(function, inputs, **options):
    """A call that runs `function(*inputs, **options)` and its backward, and returns (loss, *gradients)."""
    leaves = [x for x in inputs if x.is_floating_point() and x.requires_grad]

    def call():
        loss = function(*inputs, **options)
        return (loss.detach(), *torch.autograd.grad(loss, leaves))

    return call


def maze_paths(batch, size, length, device, seed=0):
    """Shortest paths of dfs mazes, cut to `length` cells, and the candidates: the loss's real input."""
    least = min(length, int(0.35 * size * size))
    tasks = poh_ext.sample_tasks(batch, size, min_path=least, seed=seed, device=device)
    path = torch.nn.functional.pad(tasks.path, (0, max(0, length - tasks.path.size(1))), value=-1)[:, :length]
    return path.contiguous(), tasks.mazes.neighbors()


def loss_cases(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(size name, builder) of the dense loss."""
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-9}.get(dtype, 2e-2)

    def case(name, batch, rows, classes, length, horizons, masked):
        def build() -> Case:
            generator = torch.Generator().manual_seed(0)
            logits = torch.randn(batch, rows, classes, generator=generator).to(device, dtype).requires_grad_()
            if name == "lm":
                targets = torch.randint(classes, (batch, length), generator=generator).to(device)
                options = {"horizons": horizons, "label_smoothing": 0.1}
                read = rows
            else:
                targets, candidates = maze_paths(batch, int(rows**0.5), length, device)
                options = {"horizons": horizons, "label_smoothing": 0.1, "rows": targets}
                if masked:
                    options["candidates"] = candidates
                read = length
            ours = with_gradients(
                lambda x, t, **o: poh_ext.multi_horizon_cross_entropy(x, t, ignore_index=-1, **o),
                (logits, targets), **options,
            )
            eager = with_gradients(baselines.eager_cross_entropy, (logits, targets), **options)
            compiled = torch.compile(baselines.eager_cross_entropy)
            variants = {OURS: ours, "eager": eager}
            variants["torch.compile"] = with_gradients(compiled, (logits, targets), **options)
            if not masked:
                naive = baselines.per_horizon_cross_entropy
                variants["F.cross_entropy each"] = with_gradients(naive, (logits, targets), **options)
            traffic = logits.element_size() * batch * classes * (2 * read + rows)
            label = f"loss {name} B{batch} N{rows} V{classes} K{horizons}"
            return Case("loss", label, variants, close(tolerance), traffic)

        return name, build

    yield case("maze12", 32, 144, 144, 65, 1, True)
    yield case("maze30", 64, 900, 900, 200, 3, False)
    yield case("lm", 8, 512, 32000, 512, 4, False)


def routing_cases(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(size name, builder) of softmax weights with entropy, forward and backward."""
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 3e-2

    def case(name, rows, heads):
        def build() -> Case:
            generator = torch.Generator().manual_seed(0)
            logits = torch.randn(rows, heads, generator=generator).to(device, dtype).requires_grad_()
            upstream = torch.randn(rows, heads, generator=generator).to(device, dtype)

            def total(route):
                def function(x):
                    weights, entropy = route(x, 1.3)
                    return (weights * upstream).sum() + entropy.sum()
                return function

            ours = total(lambda x, t: poh_ext.route(x, temperature=t))
            eager = total(baselines.eager_route)
            variants = {OURS: with_gradients(ours, (logits,)), "eager": with_gradients(eager, (logits,)),
                        "torch.compile": with_gradients(torch.compile(eager), (logits,))}
            traffic = logits.element_size() * rows * (heads * 5 + 2)
            return Case("routing", f"route [{rows}, {heads}]", variants, close(tolerance), traffic)

        return name, build

    yield case("tokens", 32 * 144, 6)
    yield case("wide", 8192, 16)


def maze_cases(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(size name, builder) of generation, with and without solution, and of the tensors made from mazes."""
    from poh_ext.bench import maze_rivals

    def generate(size, algorithm, count):
        def build() -> Case:
            def ours():
                return (poh_ext.generate_mazes(count, size, algorithm=algorithm, device=device).passages,)

            variants, items = maze_rivals.generation(size, algorithm, count, device)
            name = f"generate {algorithm} {size}x{size}"
            return Case("mazes", name, {OURS: ours, **variants}, maze_rivals.same_mazes(algorithm, size),
                        items={OURS: count, **items})

        return f"{size}", build

    def solve(size, count):
        def build() -> Case:
            def ours():
                mazes = poh_ext.generate_mazes(count, size, device=device)
                corner = torch.zeros(count, dtype=torch.int64, device=device)
                return mazes.passages, mazes.shortest_paths(corner, corner + size * size - 1)

            variants, items = maze_rivals.solution(size, count, device)
            name = f"generate+solve dfs {size}x{size}"
            return Case("mazes", name, {OURS: ours, **variants}, maze_rivals.same_mazes("dfs", size),
                        items={OURS: count, **items})

        return f"{size}", build

    def masks(size, count):
        def build() -> Case:
            mazes = poh_ext.generate_mazes(count, size, device=device)
            cells = size * size
            variants = {OURS: lambda: (mazes.neighbors(), mazes.valid_mask()),
                        "eager": lambda: maze_rivals.masks(mazes.passages)}
            traffic = mazes.passages.nbytes * 2 + count * cells * (4 * 8 + cells)
            return Case("mazes", f"neighbors+valid_mask {size}x{size}", variants, close(0.0), traffic)

        return f"{size}", build

    for size, count in ((12, 4096), (16, 2048), (30, 512)):
        for algorithm in poh_ext.GENERATORS if size == 12 else ("dfs",):
            yield generate(size, algorithm, count)
        yield solve(size, count)
        yield masks(size, count // 4)


GROUPS: dict[str, Callable] = {"loss": loss_cases, "routing": routing_cases, "mazes": maze_cases}
