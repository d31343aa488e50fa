"""What each step trains on: the order of a fixed set, and mazes made online."""

import dataclasses
import itertools
import threading

import pytest
import torch

from poh_ext.results import Results
from poh_ext.tasks import sample_tasks
from poh_ext.training import benchmark, cli
from poh_ext.training.config import Benchmark12x12Config, ConfigError
from poh_ext.training.data import FixedBatches, OnlineBatches, make_data, stream_seed
from tests.cases.training import tiny

pytestmark = pytest.mark.usefixtures("one_thread", "blank_pictures")


def online(exclude=None, size=5, batch_size=4, seed=7, min_path=5):
    exclude = torch.zeros(0, dtype=torch.int64) if exclude is None else exclude
    return OnlineBatches(batch_size, 3, seed, exclude, size=size, min_path=min_path, algorithm="dfs")


def equal(a, b):
    return all(torch.equal(x, y) for x, y in ((a.mazes.passages, b.mazes.passages), (a.start, b.start),
                                              (a.goal, b.goal), (a.length, b.length)))  # fmt: skip


def test_an_epoch_of_a_fixed_set_holds_every_maze_once_and_starts_anywhere():
    tasks = sample_tasks(10, 5, min_path=5, seed=1)
    whole = [batch for batch, *_ in FixedBatches(tasks, 4, seed=2).run(0, 9)]
    assert [len(batch) for batch in whole] == [4, 4, 2] * 3
    for epoch in range(3):
        keys = torch.cat([batch.keys() for batch in whole[3 * epoch : 3 * epoch + 3]])
        assert torch.equal(keys.sort().values, tasks.keys().sort().values)
    assert not equal(whole[0], whole[3])
    for first in range(10):
        rest = [batch for batch, *_ in FixedBatches(tasks, 4, seed=2).run(first, 9)]
        assert len(rest) == 9 - first and all(map(equal, rest, whole[first:]))
    generator = torch.Generator().manual_seed(2)  # the order that earlier versions trained in
    assert equal(whole[0], tasks[torch.randperm(10, generator=generator)[:4]])


def test_online_batches_depend_on_seed_and_step_alone():
    whole = [batch for batch, *_ in online().run(0, 8)]
    for first in range(8):
        assert all(map(equal, (batch for batch, *_ in online().run(first, 8)), whole[first:]))
    assert not any(equal(a, b) for a, b in itertools.combinations(whole, 2))
    other = [batch for batch, *_ in online(seed=8).run(0, 8)]
    assert not any(equal(a, b) for a in whole for b in other)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert all(map(equal, (batch for batch, *_ in online().run(0, 8)), whole))
    finally:
        torch.set_num_threads(threads)


def test_stream_seeds_are_in_range_and_differ():
    seeds = {stream_seed(seed, step) for seed in (0, 1, 42, 43, 2**62 - 1) for step in range(2000)}
    assert len(seeds) == 10_000 and min(seeds) >= 0 and max(seeds) < 2**63


def test_the_next_batch_is_made_while_the_step_is_computed(monkeypatch):
    made, threads = threading.Semaphore(0), set()

    def sample(*args, **kwargs):
        threads.add(threading.current_thread())
        tasks = sample_tasks(*args, **kwargs)
        made.release()
        return tasks

    monkeypatch.setattr("poh_ext.training.data.sample_tasks", sample)
    steps = online().run(0, 3)
    next(steps)
    # Two are made though one was asked for: the second while "the step" runs here.
    assert made.acquire(timeout=600) and made.acquire(timeout=600) and not made.acquire(timeout=0.2)
    steps.close()
    assert threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


def test_an_error_in_the_making_reaches_the_training():
    with pytest.raises(ValueError, match="min_path is 10 cells, but a maze of 3 x 3 has only 9"):
        next(online(size=3, min_path=9 + 1).run(0, 3))


def test_test_mazes_never_occur_and_the_rejected_are_counted():
    exclude = sample_tasks(60, 3, min_path=3, seed=5).keys()  # of the 192 mazes of 3x3
    plain, filtered = (online(e, size=3, batch_size=50, min_path=3) for e in (None, exclude))
    total = 0
    for step in range(20):
        tasks, _, rejected = filtered.draw(step)
        assert len(tasks) == 50 and not torch.isin(tasks.keys(), exclude).any()
        # The same stream, read on: what was left out are exactly the test mazes.
        stream = sample_tasks(50 + rejected, 3, min_path=3, algorithm="dfs", seed=stream_seed(7, step))
        known = torch.isin(stream.keys(), exclude)
        assert int(known.sum()) == rejected and equal(stream[~known], tasks)
        assert torch.isin(plain.draw(step)[0].keys(), exclude).any()
        total += rejected
    assert total > 100


def test_where_all_mazes_are_test_mazes_it_says_so():
    every = sample_tasks(200, 2, min_path=3, seed=5).keys()
    with pytest.raises(ConfigError, match=r"--train online: \d+ of \d+ mazes drawn are test mazes"):
        online(every, size=2, min_path=3).draw(0)
    with pytest.raises(ConfigError, match="--train online"):
        make_data(tiny(train="online", maze_size=2, test=200, min_path=0.5), 1)


def test_train_takes_a_number_or_online(capsys):
    pytest.importorskip("tyro")
    assert cli.parse(Benchmark12x12Config, ["--train", "400"]).train == 400
    config = cli.parse(Benchmark12x12Config, ["--train", "online", "--steps-per-epoch", "7", "--epochs", "3"])
    assert config.train == "online" and config.total_steps(0) == 21
    with pytest.raises(SystemExit):
        cli.parse(Benchmark12x12Config, ["--train", "offline"])
    with pytest.raises(ConfigError, match="--train offline: must be at least 1, or online"):
        tiny(train="offline").check()
    with pytest.raises(ConfigError, match="--train online contradicts --protocol as-published"):
        tiny(train="online", protocol="as-published").check()
    with pytest.raises(ConfigError, match="--steps-per-epoch 0"):
        tiny(train="online", steps_per_epoch=0).check()
    assert "--steps-per-epoch does nothing" in tiny(steps_per_epoch=7).ineffective()[0]
    assert tiny(train="online", steps_per_epoch=7).ineffective() == []


def test_an_online_run_end_to_end(tmp_path, capsys):
    config = tiny(
        train="online", steps_per_epoch=5, maze_size=3, min_path=0.3, test=60, output=tmp_path, rows=("baseline",)
    )
    assert benchmark.run_benchmark(config) == 0
    out = capsys.readouterr().out
    results = Results.load(tmp_path / "results.json")
    (row,) = results.rows
    assert row.steps == 10 and results.test_sets[42]["n_train"] == 40
    assert row.train_mazes_per_second == pytest.approx(40 / row.train_seconds)
    rejected = int(row.note.split()[0])
    data = make_data(config, 42)
    assert rejected == sum(count for *_, count in data.batches.run(0, 10)) > 0
    assert row.note in out and row.note in (tmp_path / "report.md").read_text()
    again = dataclasses.replace(config, output=tmp_path / "again")
    assert benchmark.run_benchmark(again) == 0
    assert Results.load(tmp_path / "again" / "results.json").rows[0].curve == row.curve


def test_steps_draw_their_kind_from_a_mixture():
    kinds = ("dfs", "obstacles", "braid", "open")
    none = torch.zeros(0, dtype=torch.int64)
    make = {"size": 6, "min_path": 5, "anywhere": True}
    mixed = OnlineBatches(4, 10, 7, none, algorithm=kinds, **make)
    alone = {kind: OnlineBatches(4, 10, 7, none, algorithm=kind, **make) for kind in kinds}
    seen = [mixed.kind(step) for step in range(80)]
    assert all(9 <= seen.count(kind) <= 31 for kind in kinds)  # of 20 expected, 3 standard deviations are 12
    steps = [seen.index(kind) for kind in kinds]
    for kind, step in zip(kinds, steps, strict=True):  # a step is that of a training on its kind alone
        batch = mixed.draw(step).batch
        assert equal(batch, alone[kind].draw(step).batch)
        ways = (batch.mazes.neighbors() >= 0).sum((1, 2)) // 2
        assert (ways == 35).all() == (kind == "dfs") and batch.mazes.has_blocked == (kind in ("obstacles", "open"))
        if batch.mazes.has_blocked:  # start and goal are free, with a way between them
            assert (batch.length >= 2).all()
            assert batch.mazes.free().flatten(1).gather(1, batch.goal[:, None]).all()
            drawn = torch.cat([step.batch.mazes.free().flatten() for step in alone[kind].run(0, 10)])
            assert (drawn.float().mean() > 0.7) == (kind == "open")


def test_the_test_mazes_are_of_all_kinds():
    data = make_data(tiny(algorithm="dfs, obstacles,dfs", test=5, maze_size=6, min_path=0.3), 1)
    first, rest = data.test[:3], data.test[3:]
    assert (first.length >= 11).all() and ((first.mazes.neighbors() >= 0).sum((1, 2)) == 70).all()
    assert len(rest) == 2 and (rest.length >= 5).all() and not rest.mazes.free().all()
    assert len(data.train) == len(data.batches.tasks)
    with pytest.raises(
        ConfigError, match=r"--algorithm walls: must be one or more of dfs, wilson, .*, obstacles, braid"
    ):
        tiny(algorithm="dfs,walls").check()
