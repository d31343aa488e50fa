"""A maze as a PNG: its walls, a shortest path, and on it the path a planner walked. Needs nothing but torch."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from poh_ext.report.results import write_atomically
from poh_ext.tasks import MazeTasks

__all__ = ["LEGEND", "maze_image", "save_png"]

WALL, FLOOR, TRUTH, WALKED, START, GOAL = (
    (0x26, 0x26, 0x26), (255, 255, 255), (0x9e, 0xc9, 0xe8), (0xd5, 0x5e, 0x00), (0x00, 0x9e, 0x73), (0xcc, 0x79, 0xa7)
)  # fmt: skip
LEGEND = "wide, light blue: a shortest path; narrow, orange: the planner's; green: start; pink: goal"
WIDTH = 1000  # pixels, about


def maze_image(task: MazeTasks, walked: Tensor) -> Tensor:
    """uint8 [height, width, 3]: the first maze of `task` and the cells `walked` (int64 [S], padded with -1)."""
    raster = task.mazes.raster()[0]
    scale = min(24, max(3, WIDTH // max(raster.shape)))
    image = torch.tensor([FLOOR, WALL], dtype=torch.uint8)[raster.long()]
    image = image.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    for path, margin, colour in ((task.path[0], 0, TRUTH), (walked, scale // 3, WALKED)):
        _draw(image, path[path >= 0].tolist(), task.mazes.width, scale, margin, colour)
    for cell, colour in ((task.start, START), (task.goal, GOAL)):
        _draw(image, [int(cell[0])], task.mazes.width, scale, 0, colour)
    return image


def _draw(image: Tensor, cells: list[int], width: int, scale: int, margin: int, colour: tuple[int, int, int]) -> None:
    """A line over the cells, as wide as a corridor less the margin on both sides."""
    for a, b in zip(cells, cells[1:] or cells, strict=False):
        rows, columns = (
            slice((2 * min(ends) + 1) * scale + margin, (2 * max(ends) + 2) * scale - margin)
            for ends in ((a // width, b // width), (a % width, b % width))
        )
        image[rows, columns] = torch.tensor(colour, dtype=torch.uint8)


def save_png(path: str | Path, image: Tensor) -> Path:
    """Write uint8 [height, width, 3] as a PNG, in one step (PNG specification, third edition: 8-bit truecolour)."""
    height, width, _ = image.shape
    rows = torch.cat([image.new_zeros(height, 1), image.flatten(1)], 1)  # each row is led by its filter: 0, none
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows.numpy().tobytes()), 9)), (b"IEND", b""))
    data = b"".join(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
                    for kind, body in chunks)
    return write_atomically(path, b"\x89PNG\r\n\x1a\n" + data)
