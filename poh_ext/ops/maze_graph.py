"""Maze graphs: compiled kernels or PyTorch reference."""
from poh_ext.reference.maze_graph import distances, endpoints, neighbors, shortest_paths, valid_mask

__all__ = ["distances", "endpoints", "neighbors", "shortest_paths", "valid_mask"]
