"""Time on a GPU of each operator's kernels alone, beside the least time that their bytes or products need there.

    python bench/gpu_kernels.py [--json FILE]

`python -m poh_ext.bench --device cuda` times whole calls, of which most are launches at small sizes. Here the profiler
counts the time in which kernels run (torch's own among them), in the cases of the table of docs/cuda.md. The bound is
the larger of bytes / (rate of a large copy) and operations / (rate of a large matrix product), both measured first.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence

import torch
from torch.profiler import ProfilerActivity, profile

import poh_ext
from poh_ext._files import write_atomically
from poh_ext._program import Parser
from poh_ext.bench.operator_cases import maze_paths

GPU = torch.device("cuda")
CALLS = 20


def kernel_seconds(call) -> tuple[float, Counter]:
    """Seconds of kernels in one call (the mean of CALLS), and of each kernel by its name."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    each = Counter()
    for event in seen.key_averages():
        name = event.key.replace("(anonymous namespace)::", "").removeprefix("void ").split("(")[0]
        each[name] += event.self_device_time_total * 1e-6 / CALLS
    return sum(each.values()), each


def elapsed(call, repeats=10) -> float:
    """Seconds of one call on the device, the best of some."""
    call()
    best = float("inf")
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) * 1e-3 / repeats)
    return best


def peaks() -> tuple[float, dict]:
    a = torch.empty(1 << 30, dtype=torch.uint8, device=GPU)
    b = torch.empty_like(a)
    copy = 2 * a.numel() / elapsed(lambda: b.copy_(a))
    products = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, y = (torch.randn(8192, 8192, device=GPU, dtype=dtype) for _ in range(2))
        products[dtype] = 2 * 8192**3 / elapsed(lambda x=x, y=y: x @ y, repeats=3)
    return copy, products


def both(loss, leaves):
    """Forward and backward of a loss, as two cases would share one graph."""
    return lambda: torch.autograd.grad(loss(), leaves)


def loss_case(batch, rows, classes, length, horizons, dtype, paths):
    logits = torch.randn(batch, rows, classes, device=GPU, dtype=dtype).requires_grad_()
    options = {"horizons": horizons, "label_smoothing": 0.1, "ignore_index": -1}
    if paths:
        targets, candidates = maze_paths(batch, int(rows**0.5), length, GPU)
        options["rows"] = targets
        read = sum(len(set(row[row >= 0].tolist())) for row in targets) / (batch * rows)
        if horizons == 1:
            options["candidates"] = candidates
    else:
        targets, read = torch.randint(classes, (batch, length), device=GPU), 1.0
    size = logits.numel() * logits.element_size()

    def loss():
        return poh_ext.multi_horizon_cross_entropy(logits, targets, **options)

    name = f"B{batch} N{rows} V{classes} L{length} K{horizons} {str(dtype)[6:]}"
    yield f"loss forward {name}", torch.no_grad()(loss), size * read, 0, dtype
    yield f"loss forward and backward {name}", both(loss, [logits]), size * (2 * read + 1), 0, dtype


def linear_case(batch, rows, classes, length, horizons, width, dtype, paths):
    hidden = torch.randn(batch, rows, width, device=GPU, dtype=dtype).requires_grad_()
    weight = (torch.randn(classes, width, device=GPU) * width**-0.5).to(dtype).requires_grad_()
    options = {"horizons": horizons, "label_smoothing": 0.1, "ignore_index": -1}
    if paths:
        targets, candidates = maze_paths(batch, int(rows**0.5), length, GPU)
        options["rows"] = targets
        if horizons == 1:
            options["candidates"] = candidates
    else:
        targets = torch.randint(classes, (batch, length), device=GPU)
    columns = 4 if "candidates" in options else classes

    def loss():
        return poh_ext.multi_horizon_linear_cross_entropy(hidden, weight, targets, **options)

    name = f"B{batch} N{rows} V{classes} L{length} K{horizons} D{width} {str(dtype)[6:]}"
    flops = 6 * batch * length * columns * width
    moved = 2 * (hidden.numel() + weight.numel()) * hidden.element_size()
    yield f"linear loss and gradients {name}", both(loss, [hidden, weight]), moved, flops, dtype


def small_cases():
    scores = torch.randn(8192, 16, device=GPU).requires_grad_()
    route = both(lambda: sum(x.sum() for x in poh_ext.route(scores)), [scores])
    yield "route forward and backward [8192, 16] float32", route, scores.numel() * 4 * 5, 0, torch.float32
    for batch, size, heads, width in ((32, 12, 4, 12), (64, 30, 8, 32)):
        mazes = poh_ext.generate_mazes(batch, size, device=GPU)
        near = mazes.neighbors()
        q, k, v = (torch.randn(batch, heads, size * size, width, device=GPU).requires_grad_() for _ in range(3))
        upstream = torch.randn_like(q)
        name = f"B{batch} N{size * size} H{heads} Dh{width} float32"
        one = q.numel() * 4
        yield (
            f"neighbour attention forward {name}",
            lambda q=q, k=k, v=v, n=near: poh_ext.neighbor_attention(q.detach(), k.detach(), v.detach(), n),
            4 * one,
            0,
            torch.float32,
        )
        yield (
            f"neighbour attention forward and backward {name}",
            lambda q=q, k=k, v=v, n=near, g=upstream: torch.autograd.grad(
                poh_ext.neighbor_attention(q, k, v, n), [q, k, v], g
            ),
            11 * one,
            0,
            torch.float32,
        )
    mazes = poh_ext.generate_mazes(1000, 12, device=GPU)
    yield "neighbors, 1000 mazes 12x12", mazes.neighbors, 1000 * 144 * 33, 0, torch.float32
    yield "valid_mask, 1000 mazes 12x12", mazes.valid_mask, 1000 * 144 * 145, 0, torch.float32


def cases():
    single, half = torch.float32, torch.bfloat16
    yield from loss_case(32, 144, 144, 65, 1, single, True)
    yield from loss_case(64, 900, 900, 200, 3, single, True)
    yield from loss_case(8, 512, 32000, 512, 4, half, False)
    yield from loss_case(8, 512, 128256, 512, 1, half, False)
    yield from linear_case(64, 900, 900, 200, 3, 256, single, True)
    yield from linear_case(64, 900, 900, 200, 1, 128, single, True)
    yield from linear_case(8, 512, 32000, 512, 4, 1024, half, False)
    yield from linear_case(8, 512, 128256, 512, 1, 1024, half, False)
    yield from small_cases()


def mazes_per_second():
    for algorithm in poh_ext.GENERATORS:
        for size, n in ((12, 100_000), (16, 100_000), (30, 20_000)):
            made = [0]

            def make(algorithm=algorithm, size=size, n=n, made=made):
                made[0] += n
                return poh_ext.generate_mazes(n, size, algorithm=algorithm, start_index=made[0], device=GPU)

            goal = torch.zeros(n, dtype=torch.int64, device=GPU)
            mazes = make()
            yield {"mazes": f"{algorithm} {size}x{size}", "n": n, "made_per_second": n / elapsed(make, repeats=2),
                   "distances_per_second": n / elapsed(lambda m=mazes, g=goal: m.distances(g), repeats=2)}  # fmt: skip


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python bench/gpu_kernels.py", description=__doc__.splitlines()[0])
    parser.add_output("--json", help="write all figures to FILE")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse(sys.argv[1:])
    torch.manual_seed(0)
    copy, products = peaks()
    found = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_bytes_per_second": copy,
        "product_flop_per_second": {str(k)[6:]: v for k, v in products.items()},
        "kernels": [],
        "mazes": [],
    }
    print(f"{found['gpu']}, torch {torch.__version__}: copy {copy / 1e12:.2f} TB/s, products "
          + ", ".join(f"{str(k)[6:]} {v / 1e12:.0f} TFLOP/s" for k, v in products.items()))  # fmt: skip
    for name, call, moved, flops, dtype in cases():
        seconds, each = kernel_seconds(call)
        bound = max(moved / copy, flops / products[dtype])
        found["kernels"].append({"name": name, "seconds": seconds, "bound_seconds": bound, "bytes": moved,
                                 "flops": flops, "each": dict(each.most_common(12))})  # fmt: skip
        print(f"{name:<76} {seconds * 1e6:9.1f} us, bound {bound * 1e6:8.1f} us ({bound / seconds:.0%})", flush=True)
        for kernel, part in each.most_common(4):
            print(f"      {part * 1e6:9.1f} us  {kernel[:100]}")
    for record in mazes_per_second():
        found["mazes"].append(record)
        print(f"{record['mazes']:<22} {record['made_per_second'] / 1e6:8.2f} M mazes/s, with distances of "
              f"{record['distances_per_second'] / 1e6:8.2f} M/s", flush=True)  # fmt: skip
    if options.json:
        write_atomically(options.json, json.dumps(found, indent=1).encode())


if __name__ == "__main__":
    main()
