"""Tasks that start in a dead end, a corridor or a junction: against brute force."""

import pytest
import torch

from poh_ext import GENERATORS, generate_mazes, sample_tasks
from poh_ext.tasks import STARTS

ACCEPTED = {"any": (0, 1, 2, 3, 4), "dead-end": (1,), "corridor": (2,), "junction": (3, 4)}


def ways_out(mazes):
    return (mazes.neighbors() >= 0).sum(2)


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize("algorithm", GENERATORS)
def test_starts_are_of_the_kind_and_paths_fit(algorithm, kind):
    tasks = sample_tasks(40, (6, 7), min_path=5, max_path=12, algorithm=algorithm, start=kind, seed=4)
    at_start = ways_out(tasks.mazes).gather(1, tasks.start[:, None])[:, 0]
    assert len(tasks) == 40 and set(at_start.tolist()) <= set(ACCEPTED[kind])
    assert ((tasks.length >= 5) & (tasks.length <= 12)).all()
    distance = tasks.mazes.distances(tasks.goal).gather(1, tasks.start[:, None])[:, 0]
    assert torch.equal(distance.long() + 1, tasks.length)


@pytest.mark.parametrize(
    ("algorithm", "kind", "least"),
    [("dfs", "junction", 13), ("kruskal", "junction", 8), ("percolation", "corridor", 9), ("dfs", "dead-end", 14)],
)
def test_only_mazes_without_such_a_start_are_given_up(algorithm, kind, least):
    tasks = sample_tasks(50, 4, min_path=least, algorithm=algorithm, start=kind, seed=2)
    mazes = generate_mazes(int(tasks.mazes.index[-1]) + 1, 4, algorithm=algorithm, seed=2)
    reach = torch.stack([mazes.distances(torch.full((len(mazes),), cell)).amax(1) for cell in range(16)], 1)
    fits = (reach >= least - 1) & torch.isin(ways_out(mazes), torch.tensor(ACCEPTED[kind]))
    assert torch.equal(fits.any(1).nonzero()[:, 0], tasks.mazes.index)
    assert len(tasks) < len(mazes)


def test_starts_are_uniform_over_those_of_the_kind():
    """Over many mazes: each start's probability is one over how many of its maze fit."""
    n, least = 4000, 5
    tasks = sample_tasks(n, 4, min_path=least, start="corridor", seed=11)
    reach = torch.stack([tasks.mazes.distances(torch.full((n,), cell)).amax(1) for cell in range(16)], 1)
    fits = (reach >= least - 1) & (ways_out(tasks.mazes) == 2)
    assert fits.gather(1, tasks.start[:, None]).all()
    count = fits.sum(1)
    rank = (fits.cumsum(1).gather(1, tasks.start[:, None])[:, 0] - 1).double()
    place = (rank + 0.5) / count  # in (0, 1): mean 1/2, variance (1 - 1/count^2) / 12
    variance = ((1 - 1 / count.double() ** 2) / 12).sum() / n**2
    assert abs(float(place.mean()) - 0.5) < 4 * float(variance) ** 0.5


@pytest.mark.parametrize("kind", ["dead-end", "junction"])
def test_tasks_depend_on_their_arguments_alone(kind):
    few, many = (sample_tasks(n, 6, min_path=12, start=kind, seed=3) for n in (7, 90))
    assert torch.equal(few.mazes.passages, many[:7].mazes.passages)
    assert torch.equal(few.start, many.start[:7]) and torch.equal(few.goal, many.goal[:7])
    others = sample_tasks(7, 6, min_path=12, start=kind, seed=3, exclude=few.keys()[:2])
    assert torch.equal(others.start[:5], few.start[2:])


def test_starts_that_cannot_be_are_named():
    with pytest.raises(ValueError, match=r"start 'exit' is unknown; accepted: any, dead-end, corridor, junction"):
        sample_tasks(0, 4, start="exit")
    with pytest.raises(
        ValueError, match=r"2 cells from a junction \(a cell with three .* in 10000 .*; none has a junction"
    ):
        sample_tasks(1, (1, 9), start="junction")


@pytest.mark.parametrize("kind, n, least", [("any", 1, 13), ("dead-end", 1, 13), ("corridor", 1, 13),
                                            ("junction", 1, 13), ("any", 40, 9), ("junction", 40, 6)])  # fmt: skip
def test_the_longest_path_seen_is_one_of_such_a_start(kind, n, least, monkeypatch):
    """In the row of mazes that was given up, which begins after the last maze that fits."""
    monkeypatch.setattr("poh_ext.tasks._GIVE_UP", 20)
    which = {"algorithm": "percolation", "density": (0.5, 1.0), "seed": 7}
    with pytest.raises(ValueError, match=f"min_path = {least} cells.* in 20 percolation") as error:
        sample_tasks(n, 4, min_path=least, start=kind, **which)
    mazes = generate_mazes(400, 4, **which)
    reach = torch.stack([mazes.distances(torch.full((400,), cell)).amax(1) for cell in range(16)], 1) + 1
    longest = reach.masked_fill(~torch.isin(ways_out(mazes), torch.tensor(ACCEPTED[kind])), 0).amax(1)
    row = next(row for row in longest.unfold(0, 20, 1) if int(row.max()) < least)
    source = "" if kind == "any" else f" from a {kind}"
    assert str(error.value).endswith(f"; the longest path seen{source} has {int(row.max())} cells")
