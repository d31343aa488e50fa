"""Small planners with any options, and mazes for them."""

import torch

import poh_ext
from poh_ext.models import BaselinePlanner, PoHPlanner

SHAPE = {"d_model": 16, "n_heads": 4, "d_ff": 24, "depth": 2, "dropout": 0.0}
FREE = {"valid_heads": 4, "norm": "post", "head": "moves", "positions": "none", "reinject": True, "cell_features": 6}
PLANNERS = {
    "baseline": (BaselinePlanner, {"loops": 3}),
    "pooled": (PoHPlanner, {"R": 3, "T": 2, "residual": "none", "route_scale": 4.0}),
    "token": (PoHPlanner, {"R": 3, "T": 2, "residual": "none", "routing": "token"}),
    "rezero": (PoHPlanner, {"R": 3, "T": 2}),
}


def make(name, size=6, **options):
    torch.manual_seed(0)
    cls, own = PLANNERS[name]
    model = cls(size, **{**SHAPE, **own, **FREE, **options})
    if getattr(model, "alpha", None) is not None:
        torch.nn.init.constant_(model.alpha, 0.7)
    return model.eval()


def problem(n=3, size=6, seed=0):
    tasks = poh_ext.sample_tasks(n, size, min_path=4, seed=seed)
    return tasks.mazes, tasks.start, tasks.goal


def embed_alone(model) -> None:
    """The planner embeds on one thread: with AVX2, the last bits of torch's own product depend on the threads."""
    embed = model.embed.forward

    def alone(*args):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        tokens = embed(*args)
        torch.set_num_threads(threads)
        return tokens

    model.embed.forward = alone
