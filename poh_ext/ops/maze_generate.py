"""Maze generation: compiled kernel or PyTorch reference."""
from poh_ext.reference.maze_generate import ALGORITHMS, generate_mazes

__all__ = ["ALGORITHMS", "generate_mazes"]
