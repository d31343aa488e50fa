"""Random and mutated files: mazes that hold together, or a FormatError that names the file; never much memory."""

import random
import tracemalloc

import pytest
import torch

from poh_ext import MazeBatch, MazeTasks, io, sample_tasks
from tests.cases.maze_files import MAP

ROUNDS = 150
WALLS = sample_tasks(2, (3, 4), seed=1)
BLOCKED = sample_tasks(2, 5, algorithm="obstacles", min_path=4, seed=2)
CASES = {
    "walls.txt": WALLS, "blocked.txt": BLOCKED, "hrm.csv": BLOCKED, "a.map": MAP.mazes[:1], "a.scen": MAP[:3],
    "mouse.txt": WALLS[:1], "a.npz": BLOCKED, "a.safetensors": BLOCKED,
}  # fmt: skip
TOKENS = [
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\t",
    b",",
    b'"',
    b"-",
    b"o",
    b"+",
    b"#",
    b"S",
    b"G",
    b"|",
    b" ",
    b"999999999999",
    b"\xc3\xbc",
]


def mutated(data: bytes, draw: random.Random) -> bytes:
    data = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        at, to = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        kind = draw.randrange(6)
        if kind == 0:
            del data[at:to]
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = data[at:to]
        elif kind == 3:
            data[at:at] = draw.choice(TOKENS)
        elif kind == 4:
            data[at : at + 1] = draw.choice(TOKENS)
        elif data:
            data[at % len(data)] = draw.randrange(256)
    return bytes(data)


def check(path, format=None) -> bool:
    """Whether it could be read."""
    try:
        read = io.read(path, format=format)
    except io.FormatError as error:
        assert str(path) in str(error)
        return False
    mazes = read.mazes if isinstance(read, MazeTasks) else read
    MazeBatch(mazes.passages, free=mazes.free() if mazes.has_blocked else None)  # which checks them
    if isinstance(read, MazeTasks):
        MazeTasks(mazes, read.start, read.goal, read.path, read.length)
    return True


@pytest.mark.parametrize("name", CASES)
def test_mutated_files(name, tmp_path, one_thread):
    path = tmp_path / name
    io.write(path, CASES[name], format="micromouse" if name == "mouse.txt" else None)
    data, draw, read = path.read_bytes(), random.Random(name), 0
    assert check(path)
    tracemalloc.start()
    for _ in range(ROUNDS):
        path.write_bytes(mutated(data, draw))
        read += check(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read < ROUNDS / 2  # most mutations are noticed
    assert most < 1 << 24


@pytest.mark.parametrize("format", [None, *io.FORMATS])
def test_random_bytes(format, tmp_path, one_thread):
    path, draw = tmp_path / "a.txt", random.Random(format)
    for _ in range(40):
        size = draw.randrange(200)
        path.write_bytes(draw.randbytes(size) if draw.random() < 0.5 else b"".join(draw.choices(TOKENS, k=size)))
        assert not check(path, format) or format in (None, "ascii", "micromouse")


def test_a_file_that_is_written_is_whole_or_the_one_before(tmp_path, monkeypatch):
    path = io.write(tmp_path / "a.csv", BLOCKED)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        io.write(path, BLOCKED[:1])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert torch.equal(io.read(path).path, BLOCKED.path)
