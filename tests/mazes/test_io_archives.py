"""Mazes and tasks whole in files: .npz, safetensors, and torch.save; what is damaged or made to harm is refused."""

import io as streams
import json
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch

from poh_ext import MazeBatch, MazeTasks, generate_mazes, io, sample_tasks
from tests.cases.maze_files import BLOCKED, GOALS, MAP, WALLS, assert_same

RECORD = {"version": 1, "n": 2, "seed": None, "algorithm": None}
ARRAYS = {
    "passages": np.array([[[8, 12, 4]]] * 2, dtype=np.uint8),
    "start": np.array([0, 1]),
    "goal": np.array([2, 2]),
    "path": np.array([[0, 1, 2], [1, 2, -1]]),
    "length": np.array([3, 2]),
}


def npz(file, record=RECORD, **changed):
    arrays = {name: array for name, array in (ARRAYS | changed).items() if array is not None}
    if record is not None:
        arrays["poh_ext"] = np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)
    np.savez(file, **arrays)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_the_origin_is_kept(suffix, tmp_path):
    given = sample_tasks(5, 6, algorithm="wilson", seed=2**63 - 6)
    read = io.read(io.write(tmp_path / f"a.{suffix}", given))
    assert (read.mazes.seed, read.mazes.algorithm) == (2**63 - 6, "wilson")
    assert torch.equal(read.mazes.index, given.mazes.index)
    unknown = io.read(io.write(tmp_path / f"b.{suffix}", MazeBatch(given.mazes.passages)))
    assert (unknown.seed, unknown.algorithm, unknown.index) == (None, None, None)


def test_numpy_reads_what_is_written(tmp_path):
    arrays = np.load(io.write(tmp_path / "a.npz", BLOCKED), allow_pickle=False)
    assert np.array_equal(arrays["passages"], BLOCKED.mazes.passages) and np.array_equal(arrays["path"], BLOCKED.path)
    assert np.array_equal(arrays["free"], BLOCKED.mazes.free()) and arrays["path"].dtype == np.int32


def test_what_numpy_writes_is_read(tmp_path):
    npz(tmp_path / "a.npz")
    tasks = io.read(tmp_path / "a.npz")
    assert tasks.path.tolist() == ARRAYS["path"].tolist()
    npz(tmp_path / "b.npz", passages=np.asfortranarray(ARRAYS["passages"]), start=np.array([0, 1], dtype=np.int32))
    assert_same(io.read(tmp_path / "b.npz"), tasks)
    with np.load(tmp_path / "a.npz") as arrays:
        np.savez_compressed(tmp_path / "c.npz", **arrays)
    assert_same(io.read(tmp_path / "c.npz"), tasks)


@pytest.mark.parametrize("changed, message", [
    ({"record": None}, "the file holds no mazes that poh_ext wrote: it has no 'poh_ext'"),
    ({"record": RECORD | {"version": 2}}, "the file has version '2'; this poh_ext reads 1"),
    ({"record": RECORD | {"n": -1}}, "n is '-1'; a whole number of mazes"),
    ({"record": RECORD | {"n": 10**30}}, "n is '1000"),
    ({"record": RECORD | {"n": 3}}, "passages has 2 mazes; n is 3"),
    ({"record": RECORD | {"seed": "x"}}, "seed is no whole number"),
    ({"record": RECORD | {"algorithm": 3}}, "seed is no whole number, or algorithm no string"),
    ({"passages": None}, "the file holds goal, length, path, start; accepted: passages, free"),
    ({"walls": np.zeros(3)}, "the file holds .*walls; accepted: passages"),
    ({"passages": ARRAYS["passages"].astype(np.int32)}, "passages is int32; accepted: uint8"),
    ({"passages": np.full((2, 1, 3), 15, dtype=np.uint8)}, r"passages\[0, 0, 0\] = 15: a passage leads out"),
    ({"passages": np.zeros((2, 3), dtype=np.uint8)}, r"passages must be \[B, H, W\]"),
    ({"free": np.zeros((2, 1, 3), dtype=bool)}, r"free\[0, 0, 0\] is False, but the cell has passages"),
    ({"start": None}, "the file holds goal, path, length of tasks; needed: start, goal, path, length"),
    ({"start": np.array([0, 3])}, r"start\[1\] = 3 is out of range"),
    ({"start": np.array([0, 1, 2])}, r"start is \[3\]; its first size is to be n = 2"),
    ({"start": np.array(0)}, r"start is \[\]; its first size is to be n = 2"),
    ({"start": np.array([0.0, 1.0])}, "start is float64; accepted: uint8, bool, int32, int64"),
    ({"start": np.array([0, 1], dtype=object)}, "start is object; accepted"),
    ({"path": np.array([[0, 2, -1], [1, 2, -1]])}, r"path\[0\] steps from cell 0 to 2, where no passage leads"),
    ({"length": np.array([3, 3])}, r"length\[1\] = 3, but path\[1\] has 2 cells"),
])  # fmt: skip
def test_bad_content(changed, message, tmp_path):
    path = tmp_path / "a.npz"
    npz(path, **changed)
    with pytest.raises(io.FormatError, match=f"^{re.escape(str(path))}: {message}"):
        io.read(path)


def member(path, name, data, compression=zipfile.ZIP_STORED):
    """Writes an archive with one member."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, data)


def array_file(shape, descr="'|u1'", data=b"", version=(1, 0)):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    size = len(header).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + header + data


@pytest.mark.parametrize("data, message", [
    (array_file("(10**9, 1, 1)"), "damaged or no npz"),
    (array_file("(1000000000, 1, 1)", data=b"abc"), r"passages has 3 bytes, but its shape is \[1000000000, 1, 1\]"),
    (array_file("(-1, -1, 1)", data=b"a"), r"passages has 1 bytes, but its shape is \[-1, -1, 1\]"),
    (array_file("(1, 1, 1)", data=b"ab"), "passages has 2 bytes"),
    (array_file("(1, 1, 1)", "'|O'", b"cos\nsystem\n"), "passages is object; accepted"),
    (array_file("(1, 1, 1)", "[('a', '|u1')]", b"a"), "passages is .*; accepted"),
    (array_file("(1, 1, 1)", data=b"a", version=(3, 0)), r"passages is a .npy of version \(3, 0\); accepted"),
    (array_file("__import__('os')"), "damaged or no npz"),
    (array_file("(" * 500), "damaged or no npz"),
    (b"", "damaged or no npz"),
    (pickle.dumps(WALLS.mazes), "damaged or no npz"),
])  # fmt: skip
def test_arrays_that_do_not_hold_what_they_say(data, message, tmp_path):
    member(tmp_path / "a.npz", "passages.npy", data)
    with pytest.raises(io.FormatError, match=rf"a\.npz: .*{message}"):
        io.read(tmp_path / "a.npz")


def test_arrays_that_would_fill_the_memory_are_refused(tmp_path):
    data = array_file("(40000000, 1, 1)", data=bytes(40_000_000))
    member(tmp_path / "a.npz", "passages.npy", data, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "a.npz").stat().st_size < 50_000
    with pytest.raises(io.FormatError, match=r"passages would take 400000.. bytes, which a file of"):
        io.read(tmp_path / "a.npz")
    member(tmp_path / "a.npz", "passages.npy", data[:1000], zipfile.ZIP_LZMA)
    with pytest.raises(io.FormatError, match=r"passages is compressed otherwise than np.savez"):
        io.read(tmp_path / "a.npz")


def test_one_maze_for_ever_so_many_is_no_copy(tmp_path):
    npz(tmp_path / "a.npz", RECORD | {"n": 1 << 40}, **dict.fromkeys(ARRAYS) | {"passages": ARRAYS["passages"][:1]})
    assert len(io.read(tmp_path / "a.npz")) == 1 << 40


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_flipped_bits_and_cut_files_are_refused(suffix, tmp_path):
    path = io.write(tmp_path / f"a.{suffix}", sample_tasks(20, 6, seed=6))
    whole = path.read_bytes()
    for cut in (0, 1, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(io.FormatError, match=re.escape(str(path))):
            io.read(path)
    # The last tenth of a safetensors file and the middle of an .npz are values of arrays.
    at = len(whole) // 2 if suffix == "npz" else len(whole) - 40
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(io.FormatError, match="damaged"):
        io.read(path)
    with pytest.raises(FileNotFoundError):
        io.read(tmp_path / f"b.{suffix}")


def test_other_safetensors_are_refused(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    path = tmp_path / "a.safetensors"
    for tensors, metadata, message in (
        ({"weight": torch.zeros(2)}, None, "the file holds weight; accepted: passages"),
        ({"passages": torch.zeros(1, 1, 1, dtype=torch.uint8)}, None, "holds no mazes that poh_ext wrote"),
        ({"passages": torch.zeros(1, 1, 1, dtype=torch.uint8)}, {"poh_ext": "{"}, "'poh_ext' is no JSON"),
        (
            {"passages": torch.zeros(1, 1, 1, dtype=torch.uint8)},
            {"poh_ext": json.dumps(RECORD)},
            "its checksum is wrong",
        ),
    ):
        library.save_file(tensors, path, metadata)
        with pytest.raises(io.FormatError, match=message):
            io.read(path)


@pytest.mark.parametrize("what", [WALLS, BLOCKED, GOALS, MAP, WALLS.mazes, MAP.mazes], ids=repr)
def test_torch_load_with_weights_only(what):
    stream = streams.BytesIO()
    torch.save(what, stream)
    stream.seek(0)
    read = torch.load(stream, weights_only=True)
    assert_same(read, what)
    mazes, given = (each.mazes if isinstance(each, MazeTasks) else each for each in (read, what))
    assert mazes.passages.stride(0) == given.passages.stride(0)
    assert (mazes.seed, mazes.algorithm) == (given.seed, given.algorithm)


def test_torch_load_checks_what_it_builds():
    mazes = generate_mazes(2, 3)
    bad = MazeBatch(torch.full((1, 3, 3), 15, dtype=torch.uint8), check=False)
    far = MazeTasks(mazes, torch.tensor([0, 99]), torch.tensor([1, 2]), torch.zeros(2, 1).long(), check=False)
    for what, message in ((bad, "a passage leads out of the grid"), (far, "99 is out of range for 9 cells")):
        stream = streams.BytesIO()
        torch.save(what, stream)
        stream.seek(0)
        with pytest.raises((ValueError, IndexError, pickle.UnpicklingError), match=message):
            torch.load(stream, weights_only=True)
