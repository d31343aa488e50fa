"""Fused planning losses, batched mazes and Pointer-over-Heads planners for PyTorch."""

from poh_ext._backend import backend_info

__all__ = ["backend_info"]
