"""The notebooks: clean files, and the short form of each in a kernel of its own, which holds its own assertions too."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install 'poh_ext[test]'")
nbclient = pytest.importorskip("nbclient", reason="pip install 'poh_ext[test]'")
pytest.importorskip("scipy", reason="pip install 'poh_ext[test]'")

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What must be true at the end of each, in its kernel, and the kinds of pictures that it shows.
RESULTS = {
    "loss_in_a_gpt": (
        "len(curves) == 2 and all(len(c) == steps and c[-1] < c[0] for pair in curves.values() for c in pair.values())"
        " and all((pair['PyTorch'] - pair['poh_ext']).abs().max() < 1e-3 for pair in curves.values())",
        {"image/png"},
    ),
    "maze_benchmark": (
        "set(rows) == {'baseline', 'poh'} and len(results.rows) == 5 and len(rows['poh'].reached) == len(data.test)",
        {"image/png"},
    ),
    "poh_vs_baseline": (
        "comparison.n == 40 and len(points) == 2 and set(changed) == {'uniform', 'those of another maze', "
        "'constant, the mean'} and all(s[-1].all() for s in solved.values())",
        {"image/png"},
    ),
    "scaling": ("poh.scale == 'tiny' and len(poh.reached) == 40 and narrowed == (108, 4, 435, 2)", {"image/png"}),
    "solve_your_maze": ("len(cells) == 33 and walk.reached.all()", {"image/png", "image/gif", "image/svg+xml"}),
}


def test_each_notebook_has_its_line():
    listed = re.findall(r"^\| \[(\S+)\]\(\1\)", (ROOT / "notebooks/README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == [path.name for path in NOTEBOOKS] == [f"{name}.ipynb" for name in sorted(RESULTS)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_file_is_clean(path):
    text = path.read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec"} and notebook.metadata.kernelspec.name == "python3", "make strip"
    assert [cell.id for cell in notebook.cells] == [str(i) for i in range(len(notebook.cells))], "make strip"
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"} and not cell.get("attachments"), "make strip"
        assert not cell.get("outputs") and cell.get("execution_count") is None, "make strip"
    assert not re.search(r"(?<![\w.~-])/(home|Users|root|tmp|content|mnt|work)\b", text)


def test_they_begin_alike():
    """What a notebook shows and how long it takes, the same cell that installs, then the parameters."""
    first = {}
    for path in NOTEBOOKS:
        about, install, parameters = nbformat.read(path, as_version=4).cells[:3]
        assert about.cell_type == "markdown" and "**Time:**" in about.source
        assert parameters.metadata.get("tags") == ["parameters"] and "POH_EXT_QUICK" in parameters.source
        first[path.stem] = install.source
    assert len(set(first.values())) == 1 and "find_spec" in first.popitem()[1]


def run(notebook, tmp_path, monkeypatch):
    """Execute a notebook's short form in a folder of its own, which is returned."""
    monkeypatch.setenv("POH_EXT_QUICK", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, sys.path)))
    (work := tmp_path / "work").mkdir()
    place = {"metadata": {"path": str(work)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    return work


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    true, pictures = RESULTS[path.stem]
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(f"assert quick and {true}"))
    work = run(notebook, tmp_path, monkeypatch)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = {kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")}
    assert shown >= set(pictures)
    assert {file.name for file in work.iterdir()} <= {"results"}
    del notebook.cells[-1]
    nbformat.write(notebook, saved := tmp_path / path.name)
    keys = re.search(r'nbstripout --extra-keys "([^"]*)" notebooks/', (ROOT / "Makefile").read_text())[1]
    keys = " ".join(keys.replace("\\", " ").split())
    subprocess.run([sys.executable, "-m", "nbstripout", "--extra-keys", keys, str(saved)], check=True)
    assert saved.read_text() == path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "drawing, size, moves, refused",
    [
        pytest.param(*case, id=name, marks=marks)
        for name, marks, case in [
            ("two goals", (), (" .S.\n.##.\nG...\n...G", (4, 4), 4, "several goals")),
            (
                "walls",
                pytest.mark.release,
                ("+---+---+\n| S |   |\n+   +   +\n|     G |\n+---+---+", (2, 2), 2, "wall"),
            ),
            (
                "not square",
                pytest.mark.release,
                ("+---+---+---+\n| S     |   |\n+   +---+   +\n|         G |\n+---+---+---+", (2, 3), 3, "2 x 3"),
            ),
        ]
    ],
)
def test_a_maze_is_solved_also_where_a_csv_cannot_hold_it(drawing, size, moves, refused, tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "notebooks/solve_your_maze.ipynb", as_version=4)
    parameters = notebook.cells[2]
    parameters.source = re.sub(r'"""\n.*"""', f'"""\n{drawing}\n"""', parameters.source, flags=re.DOTALL)
    true = f"mazes.size == {size} and task.length.item() == {moves + 1} and int(large.length) >= 20"
    notebook.cells.append(nbformat.v4.new_code_cell(f"assert {true}"))
    files = run(notebook, tmp_path, monkeypatch) / "results/solve_your_maze"
    assert {file.name for file in files.iterdir()} == {"maze.gif", "maze.npz", "maze.safetensors", "answer.txt"}
    said = "".join(output.text for output in notebook.cells[14].outputs if output.output_type == "stream")
    assert said.startswith("results/solve_your_maze/maze.csv: ") and refused in said
