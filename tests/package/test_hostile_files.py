"""Files made to harm, of planners and of mazes: each is refused with an error that names the file, and nothing is run.

Checkpoints: tests/training/test_faults.py and test_checkpoint.py. Archives of NumPy: tests/mazes/test_io_archives.py.
"""

import json
import struct
import zipfile

import pytest
import torch

from poh_ext import io, sample_tasks
from poh_ext._files import digest, read_archive
from poh_ext.models import BaselinePlanner, weights

resource = pytest.importorskip("resource", reason="measures the memory as POSIX tells it")
safetensors = pytest.importorskip("safetensors.torch")
SHAPE = {"d_model": 16, "n_heads": 2, "d_ff": 24, "depth": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    planner = weights.save(folder / "planner.safetensors", BaselinePlanner(4, **SHAPE), notes={})
    mazes = io.write(folder / "mazes.safetensors", sample_tasks(3, 4))
    return {weights.load: planner, io.read: mazes}


def parts(data):
    """(header, data) of a safetensors file."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def with_header(change):
    def changed(data):
        header, rest = parts(data)
        names = [name for name in header if name != "__metadata__"]
        change(header, *sorted(names, key=lambda name: header[name]["data_offsets"])[-2:])
        return joined(header, rest)

    return changed


HARM = {
    "a header of 2^60 bytes": lambda data: struct.pack("<Q", 1 << 60) + data[8:],
    "a header longer than the file": lambda data: struct.pack("<Q", len(data)) + data[8:],
    "cut in the header": lambda data: data[:20],
    "cut in the data": lambda data: data[:-1],
    "more data": lambda data: data + b"more",
    "lists in lists": lambda data: joined(b"[" * 100_000 + b"]" * 100_000, b""),
    "offsets that overlap": with_header(lambda h, a, b: h[b].update(data_offsets=[0, h[b]["data_offsets"][1]])),
    "offsets beyond the file": with_header(lambda h, a, b: h[b].update(data_offsets=[1 << 50, (1 << 50) + 8])),
    "offsets that go back": with_header(lambda h, a, b: h[b].update(data_offsets=h[b]["data_offsets"][::-1])),
    "a shape of 2^60": with_header(lambda h, a, b: h[b].update(shape=[1 << 60])),
    "a shape that overflows": with_header(lambda h, a, b: h[b].update(shape=[1 << 32, 1 << 32])),
    "an unknown type": with_header(lambda h, a, b: h[b].update(dtype="PICKLE")),
    "no data": lambda data: b"",
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("load", [weights.load, io.read], ids=["planner", "mazes"])
def test_safetensors_made_to_harm(load, harm, files, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(HARM[harm](files[load].read_bytes()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"a\.safetensors.* (is|the file is) damaged or no safetensors") as raised:
        load(path)
    assert "\n" not in str(raised.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB for a file of a few"


def rewritten(path, source, tensors=lambda t: t, **record):
    """The file with other tensors and notes, and the checksum that they need."""
    header, _ = parts(source.read_bytes())
    changed = tensors(safetensors.load_file(source))
    noted = {**json.loads(header["__metadata__"]["poh_ext"]), "sha256": digest(changed), **record}
    safetensors.save_file(changed, path, {"poh_ext": json.dumps(noted)})
    return path


@pytest.mark.parametrize(
    "tensors, record, words",
    [
        (lambda t: {k: v.to(torch.int8) for k, v in t.items()}, {}, "its weights are int8; one of bfloat16, float16"),
        (lambda t: {**t, min(t): t[min(t)].double()}, {}, "its weights are float32, float64; one of"),
        (lambda t: {k: v.to(torch.complex64) for k, v in t.items()}, {}, "its weights are complex64; one of"),
        (lambda t: {}, {}, "is of another planner: 0 tensors, 2 blocks"),
        (lambda t: {**t, min(t): t[min(t)][:1]}, {}, "is of another planner"),
        (lambda t: {f"x.{k}": v for k, v in t.items()}, {}, "is of another planner"),
        (lambda t: t, {"options": {**SHAPE, "depth": 10**12}}, "is of another planner: .* tensors, 1000000000000 bl"),
        (lambda t: t, {"options": {**SHAPE, "depth": "2"}}, "is of another planner"),
        (lambda t: t, {"options": {**SHAPE, "d_model": 2**40, "n_heads": 1}}, "is of another planner|d_model"),
        (lambda t: t, {"options": 3}, "is of another planner"),
        (lambda t: t, {"size": [1 << 40, 1 << 40]}, "size|of another planner"),
        (lambda t: t, {"planner": "__import__"}, "is of another planner: '__import__'"),
        (lambda t: t, {"sha256": None}, "its checksum|the checksum of its weights is wrong"),
    ],
)
def test_planners_that_are_none(tensors, record, words, files, tmp_path):
    path = rewritten(tmp_path / "a.safetensors", files[weights.load], tensors, **record)
    with pytest.raises(ValueError, match=rf"a\.safetensors.*({words})"):
        weights.load(path)


def test_notes_of_lists_in_lists(files, tmp_path):
    for load, source in files.items():
        tensors = safetensors.load_file(source)
        path = tmp_path / "a.safetensors"
        safetensors.save_file(tensors, path, {"poh_ext": "[" * 100_000 + "]" * 100_000})
        with pytest.raises(ValueError, match=r"a\.safetensors.* damaged"):
            load(path)


def test_a_planner_of_another_floating_type_is_one(tmp_path):
    model = BaselinePlanner(4, **SHAPE).double()
    again, _ = weights.load(weights.save(tmp_path / "a.safetensors", model, notes={}))
    assert {tensor.dtype for tensor in again.state_dict().values()} == {torch.float64}


@pytest.mark.parametrize(
    "text, words",
    [
        ("a" * 2_000_000, "line 2: no csv of four columns: the line has 2000000 characters"),
        ("," * 2_000_000, "line 2: no csv of four columns: the line has 2000000 characters"),
        ('a,"' + "#" * 200_000, "line 2: no csv: field larger than field limit"),
        ('a,"' + "#\n" * 200_000, "line 2: no csv: field larger than field limit"),
        ("a," + "1" * 5_000 + "," + "1" * 5_000 + ",1", "the question has 5000 characters; N [*] N are accepted"),
        ("=cmd|' /C calc'!A0,S  G,S  G,1\x00", "line 2: no csv: the line has a NUL"),
    ],
)
def test_csv_made_to_harm(text, words, tmp_path):
    (tmp_path / "a.csv").write_text(f"source,question,answer,rating\n{text}\n")
    with pytest.raises(io.FormatError, match=rf"a\.csv.*{words}"):
        io.read(tmp_path / "a.csv")


def test_an_archive_that_would_fill_the_memory_is_refused_unread(tmp_path):
    """One that is compressed, and one whose entries are the same bytes: torch.save writes neither."""
    path = tmp_path / "a.pt"
    torch.save({"format": "x", "version": 1, "zeros": torch.zeros(1_000_000)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match="would take more memory than the file has bytes"):
        read_archive(path, "x", 1)
