"""Mazes of maze-dataset: what version 1.4.2 made (io_data/) is read as it was, and the package itself where it is."""

import types

import numpy as np
import pytest
import torch

from poh_ext import MazeBatch, io, sample_tasks
from tests.cases.maze_files import BLOCKED, GOALS, WALLS, assert_same

SOLVED = 6


@pytest.fixture(scope="module")
def theirs(request):
    """Six mazes of 6 x 6 with loops: what SolvedMaze holds, and what as_pixels() draws."""
    data = np.load(request.path.parent / "io_data" / "maze_dataset_1_4_2.npz")
    solutions = [data[f"solution_{n}"] for n in range(SOLVED)]
    mazes = [
        types.SimpleNamespace(connection_list=each, solution=way, start_pos=way[0], end_pos=way[-1])
        for each, way in zip(data["connection_list"], solutions, strict=True)
    ]
    return mazes, data["pixels"]


def test_their_mazes_are_read_as_they_draw_them(theirs):
    mazes, pixels = theirs
    tasks = io.from_lattice(mazes)
    assert np.array_equal(io.to_pixels(tasks), pixels)
    assert torch.equal(tasks.mazes.raster() == 0, torch.from_numpy(pixels.any(3)))
    assert_same(io.from_pixels(pixels), tasks)
    assert_same(io.from_pixels(pixels[0]), io.from_lattice(mazes[0]))
    for given, arrays in zip(mazes, io.to_lattice(tasks), strict=True):
        assert set(arrays) == {"connection_list", "solution", "start_pos", "end_pos"}
        assert all(np.array_equal(array, getattr(given, name)) for name, array in arrays.items())
        assert arrays["connection_list"].dtype == bool


def test_kinds_of_mazes(theirs):
    mazes, _ = theirs
    plain = [{"connection_list": maze.connection_list} for maze in mazes]
    assert_same(io.from_lattice(plain), io.from_lattice(mazes).mazes)
    assert all(set(each) == {"connection_list"} for each in io.to_lattice(io.from_lattice(plain)))
    aimed = io.from_lattice(dict(plain[0], start_pos=(0, 1), end_pos=[5, 5]))
    assert aimed.start.tolist() == [1] and aimed.goal.tolist() == [35]
    assert_same(io.from_lattice(iter(mazes)), io.from_lattice(mazes))
    for left in ((), ("start_pos",), ("end_pos",)):  # what is missing is an end of the solution
        some = [{name: getattr(maze, name) for name in ("connection_list", "solution", *left)} for maze in mazes]
        assert_same(io.from_lattice(some), io.from_lattice(mazes))


def test_ours_and_back():
    ours = sample_tasks(5, (3, 8), seed=1)
    assert_same(io.from_lattice(io.to_lattice(ours)), ours)
    assert_same(io.from_pixels(io.to_pixels(ours)), ours)
    assert_same(io.from_pixels(io.to_pixels(ours.mazes)), ours.mazes)
    assert_same(io.from_pixels(io.to_pixels(BLOCKED)), BLOCKED)
    assert_same(io.from_pixels(io.to_pixels(GOALS)), GOALS)
    blue = io.to_pixels(ours, paths=torch.full((5, 1), -1))
    assert (blue == [0, 0, 255]).all(3).sum() == 0
    assert_same(io.from_pixels(blue), ours)  # in a perfect maze there is one way


def test_the_path_may_pass_beside_itself():
    tasks = io.parse("SoG\n...\n")  # in an open grid
    walk = torch.tensor([[0, 3, 4, 5, 2]])
    assert io.from_pixels(io.to_pixels(tasks, paths=walk)).path.tolist() == walk.tolist()


A, B = np.zeros((2, 2, 2), dtype=bool), np.zeros((2, 2, 3), dtype=bool)
OUT = A.copy()
OUT[1, 0, 1] = True
BELOW = A.copy()
BELOW[0, 1, 0] = True
ENDS = {
    "connection_list": ~(A | True) | np.array([[[1, 1], [0, 0]], [[1, 0], [1, 0]]], dtype=bool),
    "start_pos": (0, 0),
    "end_pos": (1, 1),
}


@pytest.mark.parametrize("mazes, error, message", [
    (3, TypeError, "mazes must have a connection_list, or be an iterable of such, got int"),
    ("abc", TypeError, "got str"),
    ([], ValueError, "mazes must have at least one maze"),
    ([{"connection_list": A}, 3], TypeError, r"mazes\[1\] must have a connection_list, got int"),
    ({"connection_list": A.astype(int)}, TypeError, r"mazes\[0\].connection_list must be bool, got int64"),
    ({"connection_list": A[0]}, ValueError, r"mazes\[0\].connection_list must be \[2, H, W\] .*, got \[2, 2\]"),
    ({"connection_list": OUT}, ValueError, r"mazes\[0\].connection_list\[1, 0, 1\] leads right, out of the grid"),
    ({"connection_list": BELOW}, ValueError, r"mazes\[0\].connection_list\[0, 1, 0\] leads down, out of the grid"),
    ([{"connection_list": A}, {"connection_list": B}], ValueError, r"mazes\[1\] is 2 x 3, but mazes\[0\] is 2 x 2"),
    ([ENDS, {"connection_list": A}], ValueError, r"mazes\[1\] has no start_pos, but others have"),
    ([ENDS, ENDS | {"solution": [(0, 0), (0, 1), (1, 1)]}], ValueError, r"mazes\[0\] has no solution, but others have"),
    (ENDS | {"start_pos": None}, ValueError, r"mazes\[0\] has no start_pos; a task has start_pos and end_pos, or"),
    (ENDS | {"end_pos": None}, ValueError, r"mazes\[0\] has no end_pos; a task has start_pos and end_pos, or a"),
    ([ENDS, ENDS | {"end_pos": None}], ValueError, r"mazes\[1\] has no end_pos, but others have"),
    (ENDS | {"end_pos": (2, 0)}, IndexError, r"mazes\[0\].end_pos has \[2, 0\], which is no cell of 2 x 2"),
    (ENDS | {"end_pos": (0.5, 0)}, ValueError, r"mazes\[0\].end_pos must be two ints, got float64 \[2\]"),
    (ENDS | {"solution": [(0, 0), (1, 1)]}, ValueError, r"path\[0\] steps from cell 0 to 3, where no passage leads"),
    (ENDS | {"solution": [0, 1]}, ValueError, r"mazes\[0\].solution must be ints \[L, 2\]"),
])  # fmt: skip
def test_bad_lattices(mazes, error, message):
    with pytest.raises(error, match=message):
        io.from_lattice(mazes)


def test_what_a_lattice_cannot_hold():
    with pytest.raises(ValueError, match="task 0 has several goals; a SolvedMaze has one end_pos"):
        io.to_lattice(GOALS)
    cut = io.from_lattice(ENDS | {"connection_list": A})
    with pytest.raises(ValueError, match="task 0 has no path; a SolvedMaze has a solution"):
        io.to_lattice(cut)
    with pytest.raises(TypeError, match="a MazeBatch or MazeTasks is accepted, got int"):
        io.to_lattice(3)


def test_bad_pixels(theirs):
    pixels = theirs[1][0].copy()
    for image, error, message in (
        (pixels.astype(int), TypeError, "pixels must be uint8, got int64"),
        (pixels[1:], ValueError, r"pixels must be \[2H\+1, 2W\+1, 3\]"),
        (pixels[None, None], ValueError, r"pixels must be \[2H\+1, 2W\+1, 3\]"),
        (np.broadcast_to(np.uint8(0), (8193, 8193, 3)), ValueError, "pixels must have at most 67108864 pixels"),
        (
            pixels + np.uint8(9),
            ValueError,
            r"pixels\[0, 0, 0\] is \[9, 9, 9\]; accepted: \[0, 0, 0\], \[255, 255, 255\]",
        ),
    ):
        with pytest.raises(error, match=message):
            io.from_pixels(image)
    white, green, red = (np.array(color, dtype=np.uint8) for color in ((255, 255, 255), (0, 255, 0), (255, 0, 0)))
    pixels[0, 1] = white
    with pytest.raises(ValueError, match=r"raster\[0, 0, 1\] is open, but lies in the border"):
        io.from_pixels(pixels)
    image = io.to_pixels(MazeBatch.open(1, 2))
    for at, message in (
        ((1, 2), r"pixels\[0, 1, 2\] is a start or goal, but lies between cells"),
        ((1, 1), "there is no goal"),
    ):
        marked = image.copy()
        marked[0][at] = green
        with pytest.raises(ValueError, match=message):
            io.from_pixels(marked)
    image[0, 1, 1], image[0, 3, 3], image[0, 1, 2] = green, red, (0, 0, 255)
    with pytest.raises(ValueError, match=r"pixels\[0, 1, 1\]: the 1 marks 'o' are not one way"):
        io.from_pixels(image)


def test_the_package_itself(tmp_path):
    pytest.importorskip("maze_dataset")
    from maze_dataset import LatticeMaze, MazeDataset, MazeDatasetConfig, SolvedMaze
    from maze_dataset.generation import LatticeMazeGenerators

    config = MazeDatasetConfig(
        name="poh_ext",
        grid_n=6,
        n_mazes=20,
        maze_ctor=LatticeMazeGenerators.gen_dfs_percolation,
        maze_ctor_kwargs={"p": 0.2},
    )
    mazes = MazeDataset.from_config(config, do_download=False, load_local=False, save_local=False)
    tasks = io.from_lattice(mazes)
    pixels = np.stack([maze.as_pixels() for maze in mazes])
    assert np.array_equal(io.to_pixels(tasks), pixels)
    assert_same(io.from_pixels(pixels), tasks)
    assert [SolvedMaze(**arguments) for arguments in io.to_lattice(tasks)] == list(mazes)
    for arguments, image in zip(io.to_lattice(WALLS), io.to_pixels(WALLS), strict=True):
        assert np.array_equal(SolvedMaze(**arguments).as_pixels(), image)
        maze = LatticeMaze(connection_list=arguments["connection_list"])
        found = maze.find_shortest_path(tuple(arguments["start_pos"]), tuple(arguments["end_pos"]))
        assert np.array_equal(found, arguments["solution"])
