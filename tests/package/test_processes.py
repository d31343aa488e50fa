"""Mazes and losses in other processes, after this one has used its threads: the ways that are documented as working."""

import multiprocessing

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import poh_ext

SEEDS, COUNT, SIZE = 3, 200, 12


class Mazes(Dataset):
    """One batch of mazes for each seed, made where it is asked for."""

    def __len__(self):
        return SEEDS

    def __getitem__(self, seed):
        return poh_ext.sample_tasks(COUNT, SIZE, min_path=20, seed=seed).path


def loss_of(seed: int) -> float:
    logits = torch.linspace(-3, 3, 64 * 144 * 144).reshape(64, 144, 144) * (seed + 1)
    return poh_ext.multi_horizon_cross_entropy(logits, torch.arange(64 * 20).reshape(64, 20) % 144).item()


@pytest.fixture
def used_threads():
    """The pool of OpenMP threads exists in this process, which is what a bare fork cannot copy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield poh_ext.generate_mazes(1000, 30), loss_of(0)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_dataloader_workers_make_the_same_mazes(used_threads, context):
    if context not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {context} here")
    loader = DataLoader(Mazes(), batch_size=None, num_workers=2, multiprocessing_context=context, timeout=300)
    for seed, path in enumerate(loader):
        assert torch.equal(path, Mazes()[seed])


@pytest.mark.parametrize("context, initializer", [("spawn", None), ("fork", torch.set_num_threads)])
def test_processes_compute_the_same_loss(used_threads, context, initializer):
    """A forked process works if it asks for one thread before anything else."""
    if context not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {context} here")
    with multiprocessing.get_context(context).Pool(1, initializer, (1,) if initializer else ()) as pool:
        found = pool.map_async(loss_of, range(2)).get(timeout=300)
    assert found == pytest.approx([loss_of(seed) for seed in range(2)], rel=1e-6)
