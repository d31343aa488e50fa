"""Fused planning losses, batched mazes and Pointer-over-Heads planners for PyTorch."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

from poh_ext._backend import backend_info
from poh_ext.losses import MultiHorizonCrossEntropy, multi_horizon_cross_entropy
from poh_ext.routing import route, routing_entropy

try:
    __version__ = _version("poh_ext")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+source"

__all__ = ["MultiHorizonCrossEntropy", "backend_info", "multi_horizon_cross_entropy", "route", "routing_entropy"]
