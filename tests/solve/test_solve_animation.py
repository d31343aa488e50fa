"""The animation: which passes, which cells are coloured, what the frames say, and the file."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from poh_ext import generate_mazes, greedy_rollout, sample_tasks
from poh_ext.commands import solve as cli
from poh_ext.maze_drawing import WALKED, Layout
from poh_ext.mazes import MazeBatch
from poh_ext.solve import animation, pretrained
from poh_ext.solve.animation import animate, leads_to_goal, passes_shown, save_gif
from poh_ext.tasks import MazeTasks

Image = pytest.importorskip("PIL.Image")


@pytest.mark.parametrize(("farthest", "passes"), [(1, 1), (3, 900), (400, 900), (400, 100), (5000, 40_000)])
def test_passes_rise_from_one_to_the_last(farthest, passes):
    shown = passes_shown(farthest, passes)
    assert shown[0] == 1 and shown[-1] == passes and all(a < b for a, b in pairwise(shown))
    assert len(shown) <= animation.FORMING
    beyond = [n for n in shown if n > 1.1 * farthest + 2]
    assert beyond == ([passes] if passes > 1.1 * farthest + 2 else [])


@pytest.mark.parametrize("algorithm", ["dfs", "percolation", "obstacles"])
def test_cells_that_know_the_way_are_those_whose_moves_arrive(algorithm):
    tasks = sample_tasks(12, 6, min_path=4, algorithm=algorithm, seed=3)
    neighbors, distance = tasks.mazes.neighbors(), tasks.mazes.distances(tasks.goal)
    closer = -distance.gather(1, neighbors.clamp(min=0).flatten(1)).view_as(neighbors).float()
    assert torch.equal(leads_to_goal(closer, tasks), distance >= 0)
    scores = torch.rand(12, 36, 4, generator=torch.Generator().manual_seed(1)) + 0.4 * closer
    known = leads_to_goal(scores, tasks)
    assert 12 < int(known.sum()) < int((distance >= 0).sum())
    for maze in range(12):
        for start in range(36):
            cell = start
            for _ in range(36):
                ways = [(float(scores[maze, cell, k]), int(n)) for k, n in enumerate(neighbors[maze, cell]) if n >= 0]
                cell = cell if cell == tasks.goal[maze] or not ways else max(ways)[1]
            assert bool(known[maze, start]) == (cell == int(tasks.goal[maze]))


def test_any_of_several_goals_will_do():
    """Cells 0 to 5 in a row, goals 1 and 4; 2 and 3 point at each other."""
    mazes = MazeBatch(torch.tensor([[[8, 12, 12, 12, 12, 4]]], dtype=torch.uint8))
    task, scores = MazeTasks(mazes, torch.tensor([0]), torch.tensor([[1, 4, -1]])), torch.zeros(1, 6, 4)
    for cell, move in enumerate((3, 3, 3, 2, 2, 2)):
        scores[0, cell, move] = 1
    assert leads_to_goal(scores, task).tolist() == [[True, True, False, False, True, True]]


def corridor() -> MazeTasks:
    """Cells 0 1 2 3 in a row; from 0 to 3."""
    start, goal = torch.tensor([0]), torch.tensor([3])
    mazes = MazeBatch(torch.tensor([[[8, 12, 12, 4]]], dtype=torch.uint8))
    return MazeTasks(mazes, start, goal, torch.tensor([[0, 1, 2, 3]]), torch.tensor([4]))


def test_colours_spread_from_the_goal_and_the_path_comes_last():
    task, right = corridor(), torch.tensor([0.0, 0.0, 0.0, 1.0])
    wrong = torch.tensor([0.0, 0.0, 1.0, 0.0])  # to the left
    scores = [torch.stack([wrong, wrong, right, right])[None], torch.stack([right] * 4)[None]]
    frames = list(animate(task, [2, 7], scores, greedy_rollout(scores[-1], task, moves=True)))
    layout = Layout(task.mazes, animation.PIXELS, above=40, below=22, least_width=440)
    colours = [[frame.getpixel(tuple(map(int, layout.center(cell)))) for cell in (1, 2)] for frame, _ in frames]
    assert len(frames) == 2 + animation.WALKING and all(frame.size == layout.size for frame, _ in frames)
    assert [ms for _, ms in frames[:2]] == [animation.FORMING_MS, animation.PAUSE_MS]
    assert frames[-1][1] == animation.END_MS
    unknown, (far, near) = animation.UNKNOWN, colours[1]
    assert colours[0] == [unknown, near] and far != near and unknown not in (far, near)
    assert colours[2] == [WALKED, near] and colours[-1] == [WALKED, WALKED]


def test_the_end_says_what_became_of_the_walk():
    task, score = corridor(), torch.zeros(1, 4, 4)
    score[..., 3] = 1
    assert animation._outcome(greedy_rollout(score, task), 3) == "goal reached in 3 moves: a shortest path"
    assert animation._outcome(greedy_rollout(score, task), 2) == "goal reached in 3 moves: not 2"
    assert animation._outcome(greedy_rollout(score, task, max_steps=2), 3) == "goal not reached in 2 moves"


def test_states_on_the_way_are_those_of_the_policy():
    model, _, _ = pretrained.load("poh")
    task = sample_tasks(1, 7, min_path=8, seed=1)
    with torch.no_grad():
        states = model.hidden_passes(task.mazes, task.start, task.goal, after=(1, 5, 9))
        for passes, state in zip((1, 5, 9), states, strict=True):
            expected = model.policy(task.mazes, task.start, task.goal, passes=passes)
            passable = expected.isfinite()
            torch.testing.assert_close(model.head(state)[passable], expected[passable])


def test_demo_writes_a_gif_of_all_frames(tmp_path, capsys):
    path = tmp_path / "maze.gif"
    assert cli.main(["--size", "12", "--gif", str(path)]) == 0
    assert f"wrote {path}" in capsys.readouterr().out
    with Image.open(path) as read:
        stays = []
        for i in range(read.n_frames):  # frames that are alike are stored as one
            read.seek(i)
            stays.append(read.info["duration"])
        assert read.format == "GIF" and read.info["loop"] == 0
        assert read.n_frames > 60 and stays[-1] >= animation.END_MS
        last = read.convert("RGB")
    layout = Layout(generate_mazes(1, 12, seed=1), animation.PIXELS, above=40, below=22, least_width=440)
    colours = [last.getpixel(tuple(map(int, layout.center(cell)))) for cell in range(144)]
    assert path.stat().st_size < 500_000
    assert colours.count(WALKED) > 20 and animation.UNKNOWN not in colours  # all know the way at the end
    assert [file.name for file in tmp_path.iterdir()] == ["maze.gif"]


def test_a_gif_is_made_of_the_colours_drawn(tmp_path):
    task = corridor()
    scores = [torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(1, 4, 4)]
    frames = list(animate(task, [1], scores, greedy_rollout(scores[0], task, moves=True)))
    with Image.open(save_gif(tmp_path / "a.gif", iter(frames))) as read:
        drawn, stored = (np.asarray(image.convert("RGB")).astype(int) for image in (frames[0][0], read))
    different = np.abs(drawn - stored).max(-1)
    assert different.max() <= 80 and (different > 8).mean() < 0.02  # edges alone are rounded to the palette
