"""The protocols, the trainer and the evaluation, on tiny mazes."""

import pytest
import torch

from poh_ext.report import Results
from poh_ext.tasks import sample_tasks
from poh_ext.training import benchmark, device, loop, protocol
from poh_ext.training.config import ConfigError
from poh_ext.training.evaluate import evaluate, evaluate_random, next_move_accuracy
from poh_ext.training.planners import build_planner, planner_options
from tests.training_cases import tiny, train

pytestmark = pytest.mark.usefixtures("one_thread", "blank_pictures")


# -- protocols --------------------------------------------------------------------------------------------------


def test_default_protocol_gives_exactly_what_was_asked_and_no_maze_twice():
    config = tiny(train=100, test=150, maze_size=4, min_path=0.3)
    data = protocol.make_data(config, seed=1)
    assert len(data.train) == 100 and len(data.test) == 150
    assert not torch.isin(data.test.keys(), data.train.keys()).any()
    for tasks in (data.train, data.test):
        assert int(tasks.length.min()) >= config.min_path_cells == 5
    again = protocol.make_data(config, seed=1)
    assert torch.equal(again.test.path, data.test.path) and torch.equal(again.train.start, data.train.start)


def test_mazes_known_from_training_are_replaced():
    config = tiny(train=60, test=60, maze_size=3, min_path=0.3)  # 192 mazes exist: the two draws must collide
    alone = sample_tasks(60, 3, min_path=3, seed=protocol.TEST_SEED_OFFSET)
    data = protocol.make_data(config, seed=0)
    assert torch.isin(alone.keys(), data.train.keys()).any()
    assert len(data.test) == 60
    assert not torch.isin(data.test.keys(), data.train.keys()).any()


def test_too_few_different_mazes_is_an_error():
    with pytest.raises(ConfigError, match=r"--test 5 with --maze-size 2"):
        protocol.make_data(tiny(train=50, test=5, maze_size=2, min_path=0.3), seed=0)


def test_an_impossible_path_length_is_an_error():
    with pytest.raises(ConfigError, match="--min-path"):
        protocol.make_data(tiny(maze_size=8, min_path=1.0, train=200), seed=0)


def test_as_published_filters_three_times_as_many_candidates():
    config = tiny(protocol="as-published", train=100, test=50, maze_size=12)
    data = protocol.make_data(config, seed=42)
    assert 0 < len(data.train) <= 100 and 0 < len(data.test) <= 50
    assert int(data.train.length.min()) >= 51
    assert config.decode_used == "recondition" and tiny().decode_used == "table"
    assert planner_options("baseline", config)["cell_features"] == 1


def test_as_published_planners_cannot_see_walls():
    config = tiny(protocol="as-published", maze_enc=True)
    tasks = sample_tasks(2, 5, min_path=5, seed=0)
    view = protocol.planner_view(tasks.mazes, config)
    assert torch.equal(view.passages[0], view.passages[1])
    assert not torch.equal(tasks.mazes.passages[0], tasks.mazes.passages[1])
    assert protocol.planner_view(tasks.mazes, tiny()) is tasks.mazes


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
    assert code == 1 and "try a lower --lr" in capsys.readouterr().err
    assert Results.load(tmp_path / "results.json").status == "interrupted"


@pytest.mark.parametrize("changes", [
    {"label_smoothing": 0.3}, {"dropout": 0.3}, {"multi_horizon": 2}, {"validity_mask": True}, {"lr": 2e-2},
    {"warmup_steps": 100}, {"maze_enc": True}, {"R": 3}, {"route_ent_weight": 0.5}, {"batch_size": 3}, {"epochs": 3},
    {"train": 9}, {"min_path": 0.5}, {"algorithm": "wilson"}, {"protocol": "as-published", "train": 20},
    {"precision": "bfloat16"},
], ids=lambda c: next(iter(c)))
def test_every_training_option_has_an_effect(changes):
    def losses(config):
        data = protocol.make_data(config, 3)
        model = build_planner("poh", config, seed=3)
        precision = device.choose_precision(config, torch.device("cpu"))
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
    runs = [train(tiny(epochs=30, lr=1e-2, route_ent_weight=weight, ent_anneal=anneal), "poh")[1]
            for weight, anneal in ((0.0, False), (5.0, False), (5.0, True))]
    entropies = [run.curve[-1]["routing_entropy"] for run in runs]
    assert entropies[1] < entropies[0]
    assert entropies[1] != entropies[2]


def test_maze_enc_adds_parameters_and_looped_baseline_does_not():
    counts = {key: sum(p.numel() for p in build_planner(name, tiny(maze_enc=enc), seed=0).parameters())
              for key, (name, enc) in {"plain": ("baseline", False), "enc": ("baseline", True),
                                       "looped": ("looped_baseline", False)}.items()}
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
        return self.table[first:first + len(start)] + self.weight


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


def test_the_random_policy_is_seeded():
    tasks = sample_tasks(50, 6, min_path=8, seed=5)
    a, b, c = (evaluate_random(tasks, seed) for seed in (0, 0, 1))
    assert a.paths == b.paths != c.paths
    assert a.exact is None  # no table was followed, and one drawn beside the walk would contradict its outcomes
