"""pytest-benchmark over the cases of poh_ext.bench: `make bench`, then `pytest-benchmark compare`.

For ratios side by side in one run use `python -m poh_ext.bench`; these suites are for comparing one commit with
another on the same machine.
"""

import pytest
import torch

from poh_ext.bench.case import OURS
from poh_ext.bench.cases import GROUPS

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = [
    pytest.param(build, id=f"{group}-{size}-{number}")
    for group, cases in GROUPS.items()
    for number, (size, build) in enumerate(cases(DEVICE, torch.float32))
]


@pytest.mark.parametrize("build", CASES)
def bench_ours(benchmark, build):
    case = build()
    case.variants = {name: call for name, call in case.variants.items() if name in (OURS, "eager", "eager gather")}
    assert not case.check()
    benchmark.group = case.name
    benchmark(case.variants[OURS])
