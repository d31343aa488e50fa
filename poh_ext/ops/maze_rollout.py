"""Greedy rollout: compiled kernel or PyTorch reference."""
from poh_ext.reference.maze_rollout import greedy_rollout

__all__ = ["greedy_rollout"]
