"""docs/gpu.md from the records of `make gpu`: the device, the stages, and the tables of their results."""

import json
from pathlib import Path

__all__ = ["bench_table", "example_table", "kernel_table", "report", "table"]

TAIL = 12  # lines of the log of a stage that failed
OURS = "poh_ext"


def table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join(line(row) for row in [head, ["---"] * len(head), *rows])


def bench_table(record: dict) -> str:
    """Of what `python -m poh_ext.bench --json` wrote: a row for each variant of each case."""
    rows, missing = [], []
    for case in record["cases"]:
        for name, entry in case["variants"].items():
            peak, ratio = entry["peak_bytes"], entry["speedup_of_ours"]
            rows.append([
                case["name"] if name == OURS else "",
                name,
                f"{entry['seconds']['p50'] * 1e3:.3f}",
                "-" if peak is None else f"{peak / 1e6:,.1f}",
                "" if name == OURS else f"{ratio['p50']:.1f}x ({ratio['p20']:.1f} to {ratio['p80']:.1f})",
            ])  # fmt: skip
        missing += [f"- {case['name']}: {name} was not timed: {why}" for name, why in case["unavailable"].items()]
    text = table(["forward and backward", "variant", "median [ms]", "peak [MB]", "poh_ext is"], rows)
    return "\n\n".join([text, *(["\n".join(missing)] if missing else [])])


def kernel_table(record: dict) -> str:
    """Of what bench/gpu_kernels.py wrote: the time of the kernels alone beside its bound, and mazes a second."""
    products = ", ".join(f"{flops / 1e12:.0f} TFLOP/s in {dtype}" for dtype, flops in
                         record["product_flop_per_second"].items())  # fmt: skip
    bound = f"A copy of 1 GB runs at {record['copy_bytes_per_second'] / 1e12:.2f} TB/s, a large product at {products}."
    kernels = [
        [each["name"], f"{each['seconds'] * 1e6:,.0f}", f"{each['bound_seconds'] * 1e6:,.1f}",
         f"{each['bound_seconds'] / each['seconds']:.0%}"]
        for each in record["kernels"]
    ]  # fmt: skip
    mazes = [
        [each["mazes"], f"{each['made_per_second'] / 1e6:.2f}", f"{each['distances_per_second'] / 1e6:.2f}"]
        for each in record["mazes"]
    ]
    return "\n\n".join([
        bound,
        table(["operator and case", "kernels [us]", "bound [us]", "share"], kernels),
        table(["mazes", "million made a second", "million distances a second"], mazes),
    ])  # fmt: skip


def example_table(text: str) -> str:
    """The first table of the report.md that a benchmark wrote."""
    lines = text.splitlines()
    first = next((at for at, line in enumerate(lines) if line.startswith("|")), len(lines))
    rest = lines[first:]
    end = next((at for at, line in enumerate(rest) if not line.startswith("|")), len(rest))
    return "\n".join(rest[:end])


READERS = {"bench": lambda text: bench_table(json.loads(text)), "kernels": lambda text: kernel_table(json.loads(text)),
           "example": example_table}  # fmt: skip


def report(facts: dict[str, str], records: list[dict]) -> str:
    """The page.

    Args:
        facts: what is known of the device and the software, name -> value.
        records: of each stage: name, title, command, status ("done", "failed", "stopped", "not run"), reason, seconds,
            log (a path), result (a path or ""), reader (a key of READERS or "").
    """
    parts = [
        "# A day on a GPU",
        "`make gpu` wrote this page. The results of every variant were compared before it was timed. \"poh_ext is "
        "2.0x\" says that the other takes twice our time, with the 20th and the 80th percentile of the rounds.",
        table(["what", "seen"], [[name, value] for name, value in facts.items()]),
        "## Stages",
        table(["stage", "status", "seconds", "command"],
              [[each["name"], " ".join(filter(None, [each["status"], each["reason"]])),
                f"{each['seconds']:.0f}" if each["seconds"] else "-", f"`{each['command']}`"] for each in records]),
    ]  # fmt: skip
    for each in records:
        found = Path(each["result"]) if each["result"] else None
        if found and found.is_file() and each["status"] != "not run":
            try:
                shown = READERS[each["reader"]](found.read_text(encoding="utf-8"))
            except (ValueError, KeyError, TypeError) as error:  # half a file of a stage that was stopped
                shown = f"{found.name} cannot be read: {type(error).__name__}: {error}"
            parts += [f"## {each['title']}", shown]
        log = Path(each["log"])
        if each["status"] == "failed" and log.is_file():
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
            parts += [f"## What `{each['name']}` said last", "\n".join(["```text", *last, "```"])]
    return "\n\n".join(parts) + "\n"
