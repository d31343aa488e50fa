"""Sharded tensors, in two processes: what they give is exact, or one line says what to do. Never a wrong number.

The two processes are started once. Each gives the results of all cases, by name.
"""

import gc
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import poh_ext

SCRIPT = Path(__file__).resolve()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo"),
]
TARGETS = [torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(rank)) for rank in range(2)]


class Head(nn.Linear):
    """A head that computes its loss: where its parameters are gathered for its forward pass, they are for this, too."""

    def forward(self, hidden, targets):
        return poh_ext.linear_cross_entropy(hidden, self.weight, targets, self.bias)


class Model(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.middle, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), Head(8, 11)
        if tied:
            self.head.weight = self.embedding.weight

    def hidden(self, tokens):
        return self.middle(self.embedding(tokens)).relu()

    def forward(self, tokens, inside):
        hidden = self.hidden(tokens)
        return self.head(hidden, tokens) if inside else hidden


# -- what the processes do --------------------------------------------------------------------------------------------


def _refused(mesh) -> dict:
    """The error of each function for a DTensor in each of its places, alone and with all others."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    logits, head, targets = torch.randn(4, 6, 8), torch.randn(8, 8), torch.randint(8, (4, 6))
    states = torch.randn(2, 3, 4, 8)
    calls = {
        "cross_entropy": (poh_ext.cross_entropy, {
            "input": logits.flatten(0, 1), "target": targets.flatten(), "weight": torch.ones(8),
            "valid": torch.ones(24, 8, dtype=torch.bool)}),
        "cross_entropy, probabilities": (poh_ext.cross_entropy, {
            "input": logits.flatten(0, 1), "target": logits.flatten(0, 1).softmax(-1)}),
        "linear_cross_entropy": (poh_ext.linear_cross_entropy, {
            "input": logits, "linear_weight": head, "target": targets, "linear_bias": head[0],
            "candidates": targets[..., None]}),
        "multi_horizon_cross_entropy": (poh_ext.multi_horizon_cross_entropy, {
            "logits": logits, "targets": targets, "rows": torch.zeros_like(targets), "segments": targets,
            "horizon_weights": torch.ones(1)}),
        "multi_horizon_linear_cross_entropy": (poh_ext.multi_horizon_linear_cross_entropy, {
            "hidden": logits, "weight": head, "targets": targets, "bias": head[0], "class_weight": torch.ones(8)}),
        "neighbor_attention": (poh_ext.neighbor_attention, {
            "q": states, "k": states, "v": states, "candidates": torch.zeros(2, 4, 1, dtype=torch.int64),
            "bias": torch.zeros(3, 2)}),
        "route": (poh_ext.route, {"logits": logits}),
        "routing_entropy": (poh_ext.routing_entropy, {"logits": logits}),
    }  # fmt: skip
    errors = {}
    for name, (function, given) in calls.items():
        shards = {key: distribute_tensor(t, mesh, [Shard(0)]) for key, t in given.items()}
        wholes = {key: distribute_tensor(t, mesh, [Replicate()]) for key, t in given.items()}
        cases = {key: {**given, key: shard} for key, shard in shards.items()}
        for case, arguments in {**cases, "all sharded": shards, "all replicated": wholes}.items():
            errors[name, case] = _error_of(function, **arguments)
    vocabulary = F.linear(wholes["logits"], distribute_tensor(head, mesh, [Shard(0)]))
    summed = DTensor.from_local(logits, mesh, [Partial()])
    for name, sharded in (("vocabulary", vocabulary), ("partial sums", summed)):
        errors["multi_horizon_cross_entropy", name] = _error_of(poh_ext.multi_horizon_cross_entropy, sharded, targets)
    compiled = torch.compile(lambda w: poh_ext.linear_cross_entropy(logits, w, targets), backend="aot_eager")
    errors["linear_cross_entropy", "compiled"] = _error_of(compiled, distribute_tensor(head, mesh, [Shard(0)]))
    return errors


def _error_of(function, *args, **kwargs) -> str:
    try:
        return f"no error, but {function(*args, **kwargs)}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _gathered(model, tokens):
    from torch.distributed.tensor import Partial

    hidden, average = model(tokens, False), [Partial("avg")]
    weight, bias = (p.full_tensor(grad_placements=average) for p in (model.head.weight, model.head.bias))
    return poh_ext.linear_cross_entropy(hidden, weight, tokens, bias)


def _unsharded(model, tokens):
    hidden = model(tokens, False)
    model.head.unshard()
    return poh_ext.linear_cross_entropy(hidden, model.head.weight, tokens, model.head.bias)


def _outside(model, tokens):
    return poh_ext.linear_cross_entropy(model(tokens, False), model.head.weight, tokens, model.head.bias)


def _inside(model, tokens):
    return model(tokens, True)


FULLY_SHARDED = {  # the loss, whether the head is a unit of its own, and whether its weight is the embedding's
    "in the forward of the head": (_inside, True, False),
    "in the forward of the root": (_inside, False, False),
    "in the forward of the root, tied": (_inside, False, True),
    "outside, of the root's parameters": (_outside, False, False),
    "outside, of the root's parameters, tied": (_outside, False, True),
    "outside, unsharded": (_unsharded, True, False),
    "outside, full_tensor": (_gathered, True, False),
    "outside": (_outside, True, False),
}


def _fully_sharded(mesh) -> dict:
    """The loss and the gradients under fully_shard, or the error."""
    from torch.distributed.fsdp import fully_shard

    found = {}
    for name, (loss, own_unit, tied) in FULLY_SHARDED.items():
        model = Model(tied)
        for unit in (model.middle, *([model.head] if own_unit else []), model):
            fully_shard(unit, mesh=mesh)
        try:
            value = loss(model, TARGETS[dist.get_rank()])
            value.backward()
            found[name] = value.detach(), {key: p.grad.full_tensor() for key, p in model.named_parameters()}
        except TypeError as error:
            found[name] = str(error)
    return found


def _local(mesh) -> dict:
    """The loss of a local part of the batch, that of hidden states that a collective is still gathering, and the
    gradients of a batch and a vocabulary that are sharded, where both processes compute the loss of the whole."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    torch.manual_seed(0)
    hidden, head, targets = torch.randn(4, 6, 8), torch.randn(11, 8), torch.randint(11, (4, 6))
    sharded = distribute_tensor(hidden, mesh, [Shard(0)])
    part = sharded.to_local()
    summed = poh_ext.linear_cross_entropy(part, head, targets.chunk(2)[dist.get_rank()], reduction="sum")
    late = sharded.redistribute(placements=[Replicate()], async_op=True).to_local()
    leaves = [sharded.detach().requires_grad_(), distribute_tensor(head, mesh, [Shard(0)]).requires_grad_()]
    full = poh_ext.linear_cross_entropy(*(t.full_tensor() for t in leaves), targets)
    exact = [t.clone().requires_grad_() for t in (hidden, head)]
    return {
        "full": [t.full_tensor() for t in torch.autograd.grad(full, leaves)],
        "exact": torch.autograd.grad(F.cross_entropy(F.linear(*exact).flatten(0, 1), targets.flatten()), exact),
        "parts": summed,
        "late": poh_ext.linear_cross_entropy(late, head, targets),
        "late, all logits": poh_ext.cross_entropy(late.flatten(0, 1), targets.flatten() % 8),
        "whole": F.cross_entropy((hidden @ head.T).flatten(0, 1), targets.flatten()),
        "whole, all logits": F.cross_entropy(hidden.flatten(0, 1), targets.flatten() % 8),
    }


def _process(folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    results = {"refused": _refused(mesh), "fully_sharded": _fully_sharded(mesh), "local": _local(mesh)}
    Path(folder, f"{dist.get_rank()}.pickle").write_bytes(pickle.dumps(results))
    gc.collect()  # see training/workers.py
    dist.destroy_process_group()


# -- what they gave ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The results of both processes."""
    folder = tmp_path_factory.mktemp("sharded")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT, folder],
        capture_output=True, text=True, timeout=600, cwd=SCRIPT.parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


def test_a_dtensor_is_refused_in_one_line(found):
    for errors in (results["refused"] for results in found):
        assert len(errors) > 40
        for (function, case), error in errors.items():
            assert error.startswith("TypeError: "), (function, case, error)
            assert "must be a plain tensor, got a DTensor [" in error and ".full_tensor()" in error, error
            assert "\n" not in error, error
            if not case.startswith("all") and case not in ("vocabulary", "partial sums", "compiled"):
                assert error.startswith(f"TypeError: {case} must be"), (function, case, error)


@pytest.mark.parametrize("how", FULLY_SHARDED)
def test_fully_shard_gives_the_mean_of_the_gradients_or_an_error(found, how):
    results = [each["fully_sharded"][how] for each in found]
    if how == "outside":
        assert all(r.startswith("linear_weight must be a plain tensor, got a DTensor [Shard(dim=0)]") for r in results)
        return
    model = Model(tied=FULLY_SHARDED[how][2])
    losses = [F.cross_entropy(F.linear(model.hidden(t), model.head.weight, model.head.bias).flatten(0, 1), t.flatten())
              for t in TARGETS]  # fmt: skip
    torch.stack(losses).mean().backward()
    for (loss, gradients), exact in zip(results, losses, strict=True):
        torch.testing.assert_close(loss, exact.detach())
        assert gradients.keys() == {name for name, _ in model.named_parameters()}
        for name, p in model.named_parameters():
            torch.testing.assert_close(gradients[name], p.grad)


def test_local_parts_add_up_and_gathered_tensors_are_whole(found):
    parts = [each["local"] for each in found]
    whole = parts[0]["whole"]
    torch.testing.assert_close(sum(p["parts"] for p in parts) / 24, whole)
    for part in parts:
        torch.testing.assert_close(part["late"], whole)
        torch.testing.assert_close(part["late, all logits"], part["whole, all logits"])
        torch.testing.assert_close(part["full"], list(part["exact"]))


if __name__ == "__main__":
    _process(sys.argv[1])
