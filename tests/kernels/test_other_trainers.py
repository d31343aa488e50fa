"""The losses, routing and attention in other people's training code: autocast, activation checkpointing, torch.func,
second derivatives, several backward passes, exported programs. Each against eager PyTorch, on the kernels and on the
reference."""

import io
import os
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.registry import lookup_backend
from torch.autograd import forward_ad
from torch.export import Dim
from torch.utils.checkpoint import checkpoint

import poh_ext
from poh_ext import multi_horizon_cross_entropy, multi_horizon_linear_cross_entropy, neighbor_attention
from poh_ext.ops import _autograd
from tests.cases.backends import KERNELS
from tests.cases.device import DEVICE

pytestmark = pytest.mark.filterwarnings("ignore:poh_ext. the PyTorch reference computes under torch.func")

REFUSED = "has no second derivative in its C"
W, T, THREE = torch.eye(2), torch.tensor([[0, 1]]), torch.tensor([[0, 1, 1]])


def eager(hidden, weight, targets, bias=None):
    """Plain next-token cross-entropy of a linear head."""
    logits = F.linear(hidden, weight, bias)[:, : targets.shape[1] - 1]
    return F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten())


def head(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, 9, 16, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(11, 16, generator=generator) / 4).to(dtype).requires_grad_()
    bias = torch.randn(11, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(11, (2, 9), generator=generator)


# -- autocast -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_linear_loss_under_autocast_is_that_of_a_linear_layer(dtypes, compiled, reduction):
    hidden, weight, bias, targets = head()
    hidden = hidden.detach().to(dtypes[0]).requires_grad_()

    def ours(h, w, b):
        return multi_horizon_linear_cross_entropy(h, w, targets, bias=b, reduction=reduction).sum()

    def plain(h, w, b):
        loss = F.cross_entropy(F.linear(h, w, b)[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten(),
                               reduction=reduction)  # fmt: skip
        return loss.sum()

    call = torch.compile(ours, fullgraph=True, backend="aot_eager") if compiled else ours
    with torch.autocast(DEVICE.type, torch.bfloat16):
        found, expected = call(hidden, weight, bias), plain(hidden, weight, bias)
        got = torch.autograd.grad(found, (hidden, weight, bias))  # backward under autocast, as some write it
        wanted = torch.autograd.grad(expected, (hidden, weight, bias))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=3e-3, atol=0)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype
        assert (a.float() - b.float()).norm() < 0.02 * b.float().norm()


def test_autocast_leaves_float64_alone():
    hidden, weight, bias, targets = head(torch.float64)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        found = multi_horizon_linear_cross_entropy(hidden, weight, targets, bias=bias)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, eager(hidden, weight, targets, bias))


def test_attention_under_autocast_casts_as_torchs_does():
    q, k, v = (torch.randn(1, 2, 4, 8) for _ in range(3))
    candidates = poh_ext.generate_mazes(1, 2).neighbors()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        found = neighbor_attention(q, k.bfloat16(), v, candidates)
        assert found.dtype == F.scaled_dot_product_attention(q, k, v).dtype == torch.bfloat16
    exact = neighbor_attention(q, k, v, candidates)
    torch.testing.assert_close(found.float(), exact, rtol=0.03, atol=0.03)


# -- activation checkpointing ---------------------------------------------------------------------------------------


def _forms():
    layer = torch.nn.Linear(4, 7)
    x, t = torch.randn(1, 4, 4), torch.randint(7, (1, 4))
    maze = torch.tensor([[[1, -1], [0, 2], [1, 3], [2, -1]]])

    def attention(x):
        y = layer(x)[..., :6].unflatten(-1, (3, 1, 2)).permute(2, 0, 3, 1, 4)
        return neighbor_attention(*y, maze)

    return layer, x, {
        "dense": lambda x: multi_horizon_cross_entropy(layer(x), t),
        "linear": lambda x: multi_horizon_linear_cross_entropy(x + layer(x)[..., :4], layer.weight, t, bias=layer.bias),
        "linear, each term": lambda x: multi_horizon_linear_cross_entropy(x + layer(x)[..., :4], layer.weight, t,
                                                                          reduction="none"),
        "route": lambda x: sum(r.square().sum() for r in poh_ext.route(layer(x))),
        "routing_entropy": lambda x: poh_ext.routing_entropy(layer(x)),
        "attention": attention,
    }  # fmt: skip


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("form", _forms()[2])
def test_checkpointing_gives_the_same_gradients(form, reentrant):
    torch.manual_seed(0)
    layer, x, forms = _forms()
    x.requires_grad_()
    inputs = (x, *layer.parameters())
    exact = torch.autograd.grad(forms[form](x).square().sum(), inputs, allow_unused=True)
    if reentrant:
        checkpoint(forms[form], x, use_reentrant=True).square().sum().backward()
        found = [t.grad for t in inputs]
    else:
        value = checkpoint(forms[form], x, use_reentrant=False).square().sum()
        found = torch.autograd.grad(value, inputs, allow_unused=True)
    torch.testing.assert_close(list(found), list(exact))


# -- torch.func and forward mode --------------------------------------------------------------------------------------


def _functions():
    candidates = torch.tensor([[[1, -1], [0, 2], [1, -1]]])
    return {
        "dense": (lambda z: multi_horizon_cross_entropy(z[None], torch.tensor([[0, 1, 1]])),
                  lambda z: F.cross_entropy(z[:2], torch.tensor([1, 1])), (3, 2)),
        "linear": (lambda h: multi_horizon_linear_cross_entropy(h[None], W.double(), torch.tensor([[0, 1, 1]])),
                   lambda h: F.cross_entropy(h[:2] @ W.double(), torch.tensor([1, 1])), (3, 2)),
        "route": (lambda z: sum(r.square().sum() for r in poh_ext.route(z)),
                  lambda z: z.softmax(-1).square().sum()
                  + torch.special.entr(z.softmax(-1)).sum(-1).square().sum(), (3, 2)),
        "routing_entropy": (poh_ext.routing_entropy,
                            lambda z: torch.special.entr(z.softmax(-1)).sum(-1).mean(), (3, 2)),
        "attention": (lambda x: neighbor_attention(x[None, None], x[None, None], x[None, None], candidates).sin().sum(),
                      lambda x: F.scaled_dot_product_attention(
                          x, x, x, torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.bool)).sin().sum(),
                      (3, 2)),
    }  # fmt: skip


@pytest.mark.parametrize("name", _functions())
def test_transforms_of_torch_func(name):
    torch.manual_seed(0)
    ours, exact, shape = _functions()[name]
    x, tangent, batch = torch.randn(shape).double(), torch.randn(shape).double(), torch.randn(4, *shape).double()
    for transform in (
        lambda f: torch.func.grad(f)(x),
        lambda f: torch.func.vmap(torch.func.grad(f))(batch),
        lambda f: torch.func.vmap(f)(batch),
        lambda f: torch.func.jvp(f, (x,), (tangent,)),
        lambda f: torch.func.jacfwd(f)(x),
        lambda f: torch.func.hessian(f)(x),
    ):
        torch.testing.assert_close(transform(ours), transform(exact))


@pytest.mark.parametrize("name", _functions())
def test_forward_mode_by_hand(name):
    torch.manual_seed(0)
    ours, exact, shape = _functions()[name]
    x, tangent = torch.randn(shape).double(), torch.randn(shape).double()
    with forward_ad.dual_level():
        found, expected = (forward_ad.unpack_dual(f(forward_ad.make_dual(x, tangent))) for f in (ours, exact))
        assert found.tangent is not None
        torch.testing.assert_close(found.tangent, expected.tangent)


def test_per_sample_gradients_with_targets_of_their_own():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 4, 7).double(), torch.randint(7, (5, 4))
    gradient = torch.func.grad(lambda z, t: multi_horizon_cross_entropy(z[None], t[None]))
    found = torch.func.vmap(gradient)(logits, targets)
    exact = [torch.func.grad(lambda z, t=t: F.cross_entropy(z[:-1], t[1:]))(z)
             for z, t in zip(logits, targets, strict=True)]  # fmt: skip
    torch.testing.assert_close(found, torch.stack(exact))


@pytest.mark.skipif(not KERNELS, reason="the kernels are not used")
def test_the_slower_way_is_said_once(monkeypatch):
    monkeypatch.setattr(_autograd, "_said", False)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            torch.func.grad(poh_ext.routing_entropy)(torch.randn(2, 3))
        poh_ext.routing_entropy(torch.randn(2, 3))
    assert [str(w.message) for w in seen if "torch.func" in str(w.message)] == [
        "poh_ext: the PyTorch reference computes under torch.func and forward-mode differentiation, slower: the "
        "kernels have a backward pass only"]  # fmt: skip


# -- derivatives of derivatives, and backward more than once ----------------------------------------------------------


def _twice(loss):
    hidden = torch.tensor([[[1.0, 2], [0, 0]]], requires_grad=True)
    value = loss(hidden)
    (gradient,) = torch.autograd.grad(value, hidden, create_graph=True)
    (value + gradient.square().sum()).backward()
    return hidden.grad


@pytest.mark.parametrize("loss", [
    lambda h: multi_horizon_linear_cross_entropy(h, W, T),
    lambda h: multi_horizon_linear_cross_entropy(h, W, T, reduction="none").sum(),
    lambda h: multi_horizon_linear_cross_entropy(h, W, T, candidates=torch.tensor([[[0, 1], [0, 1]]])),
    lambda h: multi_horizon_cross_entropy(h, T),
])  # fmt: skip
def test_a_second_derivative_is_refused_and_never_a_constant(loss):
    exact = _twice(lambda h: F.cross_entropy(h[0, :1] @ W, T[0, 1:]))
    assert exact[0, 0, 0].item() == pytest.approx(0.4804, abs=1e-4)
    if KERNELS:
        with pytest.raises(RuntimeError, match=REFUSED):
            _twice(loss)
    else:
        torch.testing.assert_close(_twice(loss), exact)


def test_a_gradient_with_a_graph_of_its_own_may_be_looked_at():
    """create_graph alone, as gradient-penalty code does before it decides, costs no error."""
    hidden, weight, bias, targets = head()
    loss = multi_horizon_linear_cross_entropy(hidden, weight, targets, bias=bias)
    found = torch.autograd.grad(loss, (hidden, weight, bias), create_graph=True)
    exact = torch.autograd.grad(eager(hidden, weight, targets, bias), (hidden, weight, bias))
    torch.testing.assert_close([g.detach() for g in found], list(exact))


def test_backward_twice_through_the_linear_loss_with_a_change_in_between():
    hidden, weight, bias, targets = head()
    loss = multi_horizon_linear_cross_entropy(hidden, weight, targets, bias=bias)
    exact = torch.autograd.grad(eager(hidden, weight, targets, bias), (hidden, weight, bias))
    for scale in (None, torch.tensor(3.0), None):
        found = torch.autograd.grad(loss, (hidden, weight, bias), scale, retain_graph=True)
        factor = 1.0 if scale is None else float(scale)
        torch.testing.assert_close(list(found), [g * factor for g in exact])
        for g in found:
            g.zero_()  # as an optimiser that owns its gradients may


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_jacobian_vectorised(reduction):
    _, weight, bias, targets = head()
    hidden = torch.randn(2, 9, 16)

    def ours(h):
        return multi_horizon_linear_cross_entropy(h, weight.detach(), targets, bias=bias.detach(), reduction=reduction)

    def plain(h):
        logits = F.linear(h, weight.detach(), bias.detach())[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(logits, targets[:, 1:].flatten(), reduction=reduction)
        return loss if reduction == "mean" else F.pad(loss.view(2, 8), (0, 1))[..., None]

    jacobian = torch.autograd.functional.jacobian
    exact = jacobian(plain, hidden)
    torch.testing.assert_close(jacobian(ours, hidden, vectorize=True), exact)
    torch.testing.assert_close(jacobian(ours, hidden), exact)


# -- numbers that change from step to step ----------------------------------------------------------------------------

ANNEALED = {
    "label_smoothing": lambda z, s: multi_horizon_cross_entropy(z, THREE, label_smoothing=s, horizons=2),
    "z_loss": lambda z, s: multi_horizon_cross_entropy(z, THREE, z_loss=s, reduction="sum"),
    "softcap": lambda z, s: multi_horizon_cross_entropy(z, THREE, softcap=s),
    "linear, label_smoothing": lambda z, s: multi_horizon_linear_cross_entropy(z, W, THREE, label_smoothing=s),
    "linear, each term": lambda z, s: multi_horizon_linear_cross_entropy(z, W, THREE, z_loss=s, reduction="none").sum(),
    "route": lambda z, s: sum(r.square().sum() for r in poh_ext.route(z, temperature=s)),
    "routing_entropy": lambda z, s: poh_ext.routing_entropy(z, temperature=s),
}


@pytest.mark.parametrize("name", ANNEALED)
def test_an_annealed_option_compiles_at_most_twice(name):
    torch._dynamo.reset()
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    call = torch.compile(ANNEALED[name], fullgraph=True, backend=backend)
    for value in torch.linspace(0.3, 0.01, 12).tolist():
        z = torch.randn(1, 3, 2, requires_grad=True)
        found, exact = call(z, value), ANNEALED[name](z, value)
        torch.testing.assert_close(found, exact)
        torch.testing.assert_close(*(torch.autograd.grad(t, z)[0] for t in (found, exact)))
    assert len(compiled) <= 2


@pytest.mark.skipif(not KERNELS, reason="the kernels are not used")
def test_operators_of_compiled_code_are_registered_as_torch_wants_them():
    z, scalars = torch.randn(2, 3, 4, requires_grad=True), torch.tensor([0.1, 0.01, 2.0], dtype=torch.float64)
    targets, nothing = torch.randint(4, (2, 3)), (None,) * 5
    ops = torch.ops.poh_ext
    torch.library.opcheck(ops.horizon_ce_scalars, (z, targets, *nothing, 2, -100, 0, True, scalars))
    torch.library.opcheck(ops.horizon_linear_ce_scalars, (z, torch.randn(5, 4, requires_grad=True), None, targets,
                                                          *nothing, 1, -100, 2, False, 0, scalars))  # fmt: skip
    torch.library.opcheck(ops.route_scalars, (z, scalars[2:]))
    torch.library.opcheck(ops.routing_entropy_scalars, (z, 0, scalars[2:]))
    torch.library.opcheck(ops.route_backward_scalars, (None, torch.ones(()), z.detach(), None, scalars[:2]))


# -- torch.export -----------------------------------------------------------------------------------------------------


def _attend(x, module):
    candidates = torch.arange(x.shape[1])[None, :, None].repeat(x.shape[0], 1, 1)
    return neighbor_attention(*x.unflatten(-1, (2, -1)).transpose(1, 2).expand(3, -1, -1, -1, -1), candidates).sum()


EXPORTED = {
    "cross_entropy": lambda x, t, m: poh_ext.cross_entropy(m.head(x).flatten(0, 1), t.flatten()),
    "cross_entropy, [N, C, d1]": lambda x, t, m: poh_ext.cross_entropy(m.head(x).transpose(1, 2), t),
    "linear_cross_entropy": lambda x, t, m: poh_ext.linear_cross_entropy(x, m.head.weight, t, return_metrics=True)[0],
    "multi_horizon": lambda x, t, m: multi_horizon_cross_entropy(m.head(x), t, horizons=3),
    "linear": lambda x, t, m: multi_horizon_linear_cross_entropy(x, m.head.weight, t, bias=m.head.bias, horizons=3),
    "rows": lambda x, t, m: multi_horizon_cross_entropy(m.head(x), t, rows=t % t.shape[1], candidates=t[..., None]),
    "linear, packed": lambda x, t, m: multi_horizon_linear_cross_entropy(x, m.head.weight, t, horizons=[1, 4],
                                                                         segments=t // 6),
    "route": lambda x, t, m: sum(r.square().mean() for r in poh_ext.route(m.head(x))),
    "attention": lambda x, t, m: _attend(x, m),
}  # fmt: skip


class _WithLoss(torch.nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.embedding, self.head, self.loss = torch.nn.Embedding(11, 8), torch.nn.Linear(8, 11), loss

    def forward(self, tokens):
        return self.loss(self.embedding(tokens), tokens, self)


@pytest.mark.parametrize("form", EXPORTED)
@pytest.mark.parametrize("how", ["export", "strict export", "compile"])
def test_one_graph_serves_every_batch_and_length(form, how):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, traced = _WithLoss(EXPORTED[form]), torch.randint(11, (4, 12))
    if how == "compile":
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return lookup_backend("aot_eager")(graph, inputs)

        program = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
        program(traced)
        compiled = len(graphs)
    else:
        sizes = ({0: Dim("batch"), 1: Dim("length")},)
        exported = torch.export.export(model, (traced,), dynamic_shapes=sizes, strict=how == "strict export")
        torch.export.save(exported, file := io.BytesIO())
        file.seek(0)
        program = torch.export.load(file).module()
    for shape in ((2, 5), (3, 2), (8, 64)):  # in the second, horizons 2 to 4 have no terms
        tokens = torch.randint(11, shape)
        found, exact = program(tokens), model(tokens)
        torch.testing.assert_close(found, exact)
        torch.testing.assert_close(*([g for g in torch.autograd.grad(loss, list(m.parameters()), allow_unused=True)
                                      if g is not None] for loss, m in ((found, program), (exact, model))))  # fmt: skip
    assert how != "compile" or len(graphs) == compiled


# -- nothing there ----------------------------------------------------------------------------------------------------


def test_lists_of_no_candidates_allow_all():
    """In a process of its own: a kernel that met a null pointer ended the process here."""
    code = """
import torch, poh_ext
torch.manual_seed(0)
x, t = torch.randn(1, 3, 4, requires_grad=True), torch.tensor([[0, 1, 2]])
none = torch.zeros(1, 3, 0, dtype=torch.long)
for options in ({}, {"label_smoothing": 0.1, "rows": t}):
    found = poh_ext.multi_horizon_cross_entropy(x, t, candidates=none, **options)
    exact = poh_ext.multi_horizon_cross_entropy(x, t, **options)
    linear = poh_ext.multi_horizon_linear_cross_entropy(x, torch.eye(4), t, candidates=none, **options)
    for value in (found, linear):
        torch.testing.assert_close(value, exact)
        torch.testing.assert_close(*(torch.autograd.grad(v, x, retain_graph=True) for v in (value, exact)))
poh_ext.neighbor_attention(*torch.randn(3, 1, 2, 3, 4, requires_grad=True), none).sum().backward()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_states_without_features_have_the_bias_as_logits(reduction):
    hidden, weight = torch.randn(2, 4, 0, requires_grad=True), torch.randn(5, 0, requires_grad=True)
    bias, targets = torch.randn(5, requires_grad=True), torch.randint(5, (2, 4))
    found = multi_horizon_linear_cross_entropy(hidden, weight, targets, bias=bias, reduction=reduction)
    exact = multi_horizon_cross_entropy(bias.expand(2, 4, 5), targets, reduction=reduction)
    torch.testing.assert_close(found, exact)
    got = torch.autograd.grad(found.sum(), (hidden, weight, bias))
    assert got[0].shape == (2, 4, 0) and got[1].shape == (5, 0)
    torch.testing.assert_close(got[2], torch.autograd.grad(exact.sum(), bias)[0])


# -- torch.set_default_device ---------------------------------------------------------------------------------------


def _everything():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 9, 9, generator=generator).requires_grad_()
    hidden = torch.randn(2, 9, 5, generator=generator).requires_grad_()
    weight = torch.randn(9, 5, generator=generator).requires_grad_()
    tasks = poh_ext.sample_tasks(2, 3, seed=1)
    path, near = tasks.path, tasks.mazes.neighbors()
    options = {"rows": path, "ignore_index": -1, "label_smoothing": 0.1, "horizon_weights": [1.0, 0.5], "horizons": 2}

    def call():
        linear = multi_horizon_linear_cross_entropy(hidden, weight, path, **options)
        near_loss = multi_horizon_cross_entropy(logits, path, candidates=near, rows=path, ignore_index=-1)
        weights, entropy = poh_ext.route(logits)
        q = hidden[:, None]
        attended = neighbor_attention(q, q, q, near).sum()
        loss = multi_horizon_cross_entropy(logits, path, **options) + linear + near_loss + attended
        loss = loss + weights[..., 0].sum() + entropy.sum() + poh_ext.routing_entropy(logits)
        mazes = poh_ext.generate_mazes(3, 4)
        start, goal = torch.tensor([0, 1, 2], device="cpu"), torch.tensor([15, 14, 13], device="cpu")
        walked = poh_ext.greedy_rollout(logits.detach()[..., :4], tasks), poh_ext.random_rollout(tasks, 0)
        made = [mazes.raster(), mazes.valid_mask(), mazes.distances(goal), mazes.shortest_paths(start, goal),
                poh_ext.sample_tasks(2, 4).path, *(rollout.path for rollout in walked)]  # fmt: skip
        return loss.detach(), *torch.autograd.grad(loss, (logits, hidden, weight)), *made

    return call


def test_the_default_device_of_torch_changes_nothing_for_tensors_elsewhere():
    """torch.set_default_device("cuda") is common; here "meta", which every machine has."""
    call = _everything()
    want = call()
    with torch.device("meta"):
        found = call()
    for a, b in zip(found, want, strict=True):
        assert a.device == b.device
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(not KERNELS, reason="the kernels are not used")
@pytest.mark.skipif(torch.__version__ < "2.11", reason="torch 2.10 fails at any float under another default device")
def test_an_annealed_option_compiles_under_another_default_device():
    step = torch.compile(lambda z, s: multi_horizon_cross_entropy(z, T, label_smoothing=s), backend="aot_eager")
    z = torch.randn(1, 2, 2)
    with torch.device("meta"):
        found = [step(z, s) for s in (0.1, 0.2, 0.3)]
    for s, loss in zip((0.1, 0.2, 0.3), found, strict=True):
        torch.testing.assert_close(loss, multi_horizon_cross_entropy(z, T, label_smoothing=s))
