"""The planners of --preset solve, for tests."""

from poh_ext.training.config import Benchmark12x12Config
from poh_ext.training.presets import with_presets
from tests.cases.training import build_planner

SOLVE = with_presets(Benchmark12x12Config(), quick=False, preset="solve")
ROWS = {"baseline": "looped_baseline", "poh": "poh"}  # name of the weights -> row of the program


def fresh(name="baseline"):
    """With first weights."""
    return build_planner(ROWS[name], SOLVE, seed=0)
