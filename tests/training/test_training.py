"""The protocols, the trainer and the evaluation, on tiny mazes."""

import itertools
import math

import pytest
import torch

from poh_ext.mazes import MazeBatch
from poh_ext.report import headline
from poh_ext.results import Results
from poh_ext.rollout import beeline_policy, greedy_rollout, is_optimal, random_policy, random_rollout
from poh_ext.tasks import MazeTasks, sample_tasks, sample_tasks_as_published
from poh_ext.training import benchmark, loop, workers
from poh_ext.training.config import ConfigError
from poh_ext.training.data import TEST_SEED_OFFSET, make_data
from poh_ext.training.evaluate import counting_options, evaluate, evaluate_control, next_move_accuracy
from poh_ext.training.plan import planned_rows
from tests.cases.training import build_planner, planner_options, tiny, train

pytestmark = pytest.mark.usefixtures("one_thread", "blank_pictures")


# -- protocols --------------------------------------------------------------------------------------------------


def test_default_protocol_gives_exactly_what_was_asked_and_no_maze_twice():
    config = tiny(train=100, test=150, maze_size=4, min_path=0.3)
    data = make_data(config, seed=1)
    assert len(data.train) == 100 and len(data.test) == 150
    assert not torch.isin(data.test.keys(), data.train.keys()).any()
    for tasks in (data.train, data.test):
        assert int(tasks.length.min()) >= config.min_path_cells == 5
    again = make_data(config, seed=1)
    assert torch.equal(again.test.path, data.test.path) and torch.equal(again.train.start, data.train.start)


def test_mazes_known_from_training_are_replaced():
    config = tiny(train=60, test=60, maze_size=3, min_path=0.3)  # 192 mazes exist: the two draws must collide
    alone = sample_tasks(60, 3, min_path=3, seed=TEST_SEED_OFFSET)
    data = make_data(config, seed=0)
    assert torch.isin(alone.keys(), data.train.keys()).any()
    assert len(data.test) == 60
    assert not torch.isin(data.test.keys(), data.train.keys()).any()


def test_too_few_different_mazes_is_an_error():
    with pytest.raises(ConfigError, match=r"--test 5 with --maze-size 2"):
        make_data(tiny(train=50, test=5, maze_size=2, min_path=0.3), seed=0)


def test_an_impossible_path_length_is_an_error():
    with pytest.raises(ConfigError, match="--min-path"):
        make_data(tiny(maze_size=8, min_path=1.0, train=200), seed=0)


def test_as_published_filters_three_times_as_many_candidates():
    config = tiny(protocol="as-published", train=100, test=50, maze_size=12)
    data = make_data(config, seed=42)
    assert 0 < len(data.train) <= 100 and 0 < len(data.test) <= 50
    assert int(data.train.length.min()) >= 51
    assert config.decode_used == "recondition" and tiny().decode_used == "table"
    assert planner_options("baseline", config)["cell_features"] == 1


def test_as_published_nothing_meets_a_wall():
    config = tiny(protocol="as-published", train=60, test=60, validate_every=1, validation=40)
    data = make_data(config, 0)
    for tasks in (data.train, data.test, data.validation, data.batches.tasks):
        open_grid = MazeBatch.open(len(tasks), 5)
        assert torch.equal(tasks.mazes.passages, open_grid.passages) and len(tasks) > 5
        moves = open_grid.distances(tasks.goal).gather(1, tasks.start[:, None])[:, 0]
        assert (moves <= 8).all() and (tasks.length - 1 > moves).any()  # the path is the maze's
    walls, test = data.test_walls, data.test
    assert torch.equal(walls.shortest_paths(test.start, test.goal, length=test.path.shape[1]), test.path)
    assert not torch.isin(walls.hash(), sample_tasks_as_published(180, 5, 9, 0).keys()).any()
    assert make_data(tiny(), 0).test_walls.hash().equal(make_data(tiny(), 0).test.keys())


@pytest.mark.parametrize("decode", ["table", "recondition"])
def test_as_published_the_rollout_walks_through_walls(decode):
    config = tiny(protocol="as-published", test=60, decode=decode)
    data = make_data(config, 0)

    class Beeline(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def policy(self, mazes, start, goal):
            return (
                beeline_policy(MazeTasks(mazes, start, goal, data.test.path[: len(start)], goal, check=False))
                + self.weight
            )

    outcome = evaluate(Beeline(), data.test, decode=decode, **counting_options(config))
    assert outcome.reached.all() and outcome.optimal.all() and outcome.exact is None
    through = [
        set(itertools.pairwise(walk)) - set(itertools.pairwise(true))
        for walk, true in zip(outcome.paths, data.test.path.tolist(), strict=True)
    ]
    assert any(through)


def test_as_published_optimal_counts_cells():
    steps, length = torch.tensor([41, 43, 41]), torch.tensor([40, 40, 39])
    reached = torch.ones(3, dtype=torch.bool)
    assert is_optimal(reached, steps, length).tolist() == [False, False, False]
    assert is_optimal(reached, steps, length, count_start=True).tolist() == [True, False, False]
    assert not is_optimal(~reached, steps, length, count_start=True).any()


def test_as_published_adds_the_controls():
    names = [row.model for row in planned_rows(tiny(protocol="as-published")) if not row.trained]
    assert names == ["random", "random_table", "beeline", "baseline", "poh"]
    assert [row.model for row in planned_rows(tiny(protocol="as-published", rows=("poh",)))] == ["poh"]
    assert "beeline" in [row.model for row in planned_rows(tiny(rows=("beeline",)))]


# -- training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["baseline", "poh"])
def test_a_small_set_is_learned(name):
    config = tiny(epochs=100, lr=5e-3, warmup_steps=10, label_smoothing=0.0, validity_mask=True, batch_size=8)
    model, training, data = train(config, name)
    first, last = training.curve[0]["loss"], training.curve[-1]["loss"]
    assert last < 0.5 * first
    assert training.steps == config.total_steps(8) == 100
    outcome = evaluate(model, data.train)
    assert outcome.moves_correct > 0.9 * outcome.moves_total


def test_the_same_seed_trains_the_same_weights():
    runs = [train(tiny(), "poh")[0].state_dict() for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[1].values(), strict=True))
    other = train(tiny(), "poh", seed=4)[0].state_dict()
    assert any(not torch.equal(a, b) for a, b in zip(runs[0].values(), other.values(), strict=True))


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train(tiny(epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_a_diverged_run_says_so(tmp_path, capsys):
    code = benchmark.run_benchmark(tiny(lr=1e30, warmup_steps=0, epochs=6, output=tmp_path, rows=("baseline",)))
    out, err = capsys.readouterr()
    assert code == 1 and "try a lower --lr" in err
    assert Results.load(tmp_path / "results.json").status == "interrupted"
    assert "baseline  " in out and "not known: the loss of a timed step is not finite" in out  # and the run went on


def test_after_a_training_that_diverged_the_other_rows_are_trained(tmp_path, monkeypatch, capsys):
    step = loop._Trainer.step

    def diverging(trainer, *args):
        values = step(trainer, *args)
        return {**values, "loss": math.nan} if trainer.label == "baseline (seed 42)" else values

    with monkeypatch.context() as patched:
        patched.setattr(loop._Trainer, "step", diverging)
        config = tiny(output=tmp_path, seeds=2, rows=("baseline", "poh"))
        assert benchmark.run_benchmark(config) == 1
    said = "baseline (seed 42) diverged: the loss is nan at step 1; try a lower --lr"
    err = capsys.readouterr().err
    assert f"error: {said}\n" in err and "error: 3 rows are finished, all but those that diverged\n" in err
    results = Results.load(tmp_path / "results.json")
    assert [(row.model, row.seed) for row in results.rows] == [("poh", 42), ("baseline", 43), ("poh", 43)]
    assert said in results.warnings and results.status == "interrupted"
    assert headline(results).endswith("; the training of baseline (seed 42) diverged.")
    assert said in (tmp_path / "report.md").read_text()
    assert benchmark.run_benchmark(config) == 0  # it was no fault of the options
    assert headline(Results.load(tmp_path / "results.json")).count("diverged") == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"label_smoothing": 0.3},
        {"dropout": 0.3},
        {"multi_horizon": 2},
        {"validity_mask": True},
        {"lr": 2e-2},
        {"warmup_steps": 100},
        {"maze_enc": True},
        {"R": 3},
        {"route_ent_weight": 0.5},
        {"batch_size": 3},
        {"epochs": 3},
        {"train": 9},
        {"min_path": 0.5},
        {"algorithm": "wilson"},
        {"protocol": "as-published", "train": 20},
        {"precision": "bfloat16"},
    ],
    ids=lambda c: next(iter(c)),
)
def test_every_training_option_has_an_effect(changes):
    def losses(config):
        data = make_data(config, 3)
        model = build_planner("poh", config, seed=3)
        precision = workers.choose_precision(config, torch.device("cpu"))
        training = loop.train_planner(model, data.train, config, seed=3, label="poh", precision=precision)
        return [point["loss"] for point in training.curve]

    base = {"epochs": 4, "lr": 1e-2}
    assert losses(tiny(**base)) != losses(tiny(**{**base, **changes}))


def test_T_decides_when_the_slow_router_runs():
    states = []
    for period in (1, 4):
        model, _, data = train(tiny(R=4, T=period, epochs=3, lr=1e-2), "poh")
        states.append(model(data.test.mazes, data.test.start, data.test.goal))
    assert not torch.equal(*states)


def test_entropy_weight_lowers_entropy_and_annealing_softens_it():
    runs = [
        train(tiny(epochs=30, lr=1e-2, route_ent_weight=weight, ent_anneal=anneal), "poh")[1]
        for weight, anneal in ((0.0, False), (5.0, False), (5.0, True))
    ]
    entropies = [run.curve[-1]["routing_entropy"] for run in runs]
    assert entropies[1] < entropies[0]
    assert entropies[1] != entropies[2]


def test_maze_enc_adds_parameters_and_looped_baseline_does_not():
    counts = {
        key: sum(p.numel() for p in build_planner(name, tiny(maze_enc=enc), seed=0).parameters())
        for key, (name, enc) in {
            "plain": ("baseline", False),
            "enc": ("baseline", True),
            "looped": ("looped_baseline", False),
        }.items()
    }
    assert counts["enc"] > counts["plain"] == counts["looped"]
    assert build_planner("looped_baseline", tiny(R=3), seed=0).loops == 3


# -- evaluation -------------------------------------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """Scores the true next cell of each path highest."""

    def __init__(self, tasks, size):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        distance = tasks.mazes.distances(tasks.goal).float()
        neighbors = tasks.mazes.neighbors()
        near = distance.gather(1, neighbors.clamp(min=0).flatten(1)).view_as(neighbors)
        self.table = (-near).masked_fill(neighbors < 0, -torch.inf)
        self.calls = []

    def policy(self, mazes, start, goal):
        first = sum(self.calls)
        self.calls.append(len(start))
        return self.table[first : first + len(start)] + self.weight


def test_a_perfect_policy_scores_full_marks_and_its_opposite_none():
    tasks = sample_tasks(10, 6, min_path=8, seed=5)
    oracle = Oracle(tasks, 6)
    outcome = evaluate(oracle, tasks, batch_size=4)
    assert oracle.calls == [4, 4, 2]  # one forward pass per batch
    assert outcome.reached.all() and outcome.optimal.all()
    assert outcome.moves_correct == outcome.moves_total == int((tasks.length - 1).sum())
    assert outcome.paths == [[c for c in path if c >= 0] for path in tasks.path.tolist()]
    correct, total = next_move_accuracy(-oracle.table, tasks)
    assert correct < 0.5 * total  # in a corridor the opposite is behind; a dead end has no other move


def test_decode_recondition_runs_the_network_from_each_position():
    config = tiny(maze_size=6)
    tasks = sample_tasks(4, 6, min_path=8, seed=5)
    model = build_planner("baseline", config, seed=0)
    calls = []
    policy = model.policy
    model.policy = lambda mazes, start, goal: (calls.append(start.clone()), policy(mazes, start, goal))[1]
    evaluate(model, tasks, decode="recondition")
    assert len(calls) > 3 and not torch.equal(calls[1], calls[2])


@pytest.mark.parametrize("name", ["random", "random_table"])
def test_the_random_controls_are_seeded(name):
    tasks = sample_tasks(50, 6, min_path=8, seed=5)
    a, b, c = (evaluate_control(name, tasks, seed) for seed in (0, 0, 1))
    assert a.paths == b.paths != c.paths
    # No table is followed by the first, and one drawn beside the walk would contradict its outcomes.
    assert (a.exact is None) == (name == "random")


def test_the_controls_are_the_public_functions():
    tasks = sample_tasks(200, 6, min_path=8, seed=5)
    walks = {
        "random": random_rollout(tasks, 3),
        "beeline": greedy_rollout(beeline_policy(tasks), tasks),
        "random_table": greedy_rollout(random_policy(tasks, 3, shared=True), tasks),
    }
    for name, walk in walks.items():
        outcome = evaluate_control(name, tasks, 3)
        assert torch.equal(outcome.reached, walk.reached) and torch.equal(outcome.optimal, walk.optimal)
    assert walks["random"].reached.sum() > 1.3 * walks["random_table"].reached.sum()
    with pytest.raises(ValueError, match="unknown control 'poh'; known: random, random_table, beeline"):
        evaluate_control("poh", tasks, 0)
