"""Fused planning losses, batched mazes and Pointer-over-Heads planners for PyTorch."""

import os as _os
import sys as _sys
from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version

try:
    from poh_ext._backend import backend_info
except ImportError as _error:
    # `poh-ext` and `python -m poh_ext...` import this first: one line, as for what is wrong with their options. A
    # program that imports poh_ext gets the error itself.
    _module = _sys.orig_argv[_sys.orig_argv.index("-m") + 1] if "-m" in _sys.orig_argv else ""
    _ours = _sys.argv[:1] == ["-m"] and _module.split(".")[0] == "poh_ext"  # so argv is while -m looks for its module
    if _ours or _os.path.splitext(_os.path.basename(_sys.argv[0]))[0] in ("poh-ext", "poh-ext-script"):
        print(f"error: {_error}", file=_sys.stderr)
        raise SystemExit(2) from None
    raise
from poh_ext import io
from poh_ext.attention import neighbor_attention
from poh_ext.cross_entropy import cross_entropy, linear_cross_entropy
from poh_ext.losses import (
    HorizonMetrics,
    MultiHorizonCrossEntropy,
    MultiHorizonLinearCrossEntropy,
    multi_horizon_cross_entropy,
    multi_horizon_linear_cross_entropy,
)
from poh_ext.mazes import GENERATORS, MazeBatch, generate_mazes
from poh_ext.rollout import Rollout, beeline_policy, greedy_rollout, random_policy, random_rollout, recondition_rollout
from poh_ext.routing import route, routing_entropy
from poh_ext.tasks import MazeTasks, sample_tasks, sample_tasks_as_published

try:
    __version__ = _version("poh_ext")
except _PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+source"

__all__ = [
    "GENERATORS",
    "HorizonMetrics",
    "MazeBatch",
    "MazeTasks",
    "MultiHorizonCrossEntropy",
    "MultiHorizonLinearCrossEntropy",
    "Rollout",
    "backend_info",
    "beeline_policy",
    "cross_entropy",
    "generate_mazes",
    "greedy_rollout",
    "io",
    "linear_cross_entropy",
    "multi_horizon_cross_entropy",
    "multi_horizon_linear_cross_entropy",
    "neighbor_attention",
    "random_policy",
    "random_rollout",
    "recondition_rollout",
    "route",
    "routing_entropy",
    "sample_tasks",
    "sample_tasks_as_published",
]
