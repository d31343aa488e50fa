"""neighbor_attention against dense masked attention in float64, closed forms and numerical gradients."""

import math

import pytest
import torch

import poh_ext
from poh_ext import neighbor_attention
from poh_ext.ops.neighbor_attention import neighbor_attention_packed
from poh_ext.reference import neighbor_attention as reference
from tests.cases.backends import DTYPES, KERNELS, needs_kernels
from tests.cases.device import DEVICE

# (B, H, N, Dh, C): one and several SIMD vectors, whole and partial; blocks of cells, whole and partial.
SHAPES = [(2, 3, 20, 12, 4), (1, 2, 33, 32, 4), (3, 1, 16, 5, 2), (1, 2, 7, 70, 4), (2, 2, 40, 16, 1), (1, 1, 1, 1, 3)]
TABLES = [(), ("bias",), ("key_offset", "value_offset"), ("bias", "key_offset", "value_offset")]
TOLERANCE = {
    torch.float64: {"rtol": 1e-11, "atol": 1e-11},
    torch.float32: {"rtol": 2e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 1e-2, "atol": 2e-2},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
}


def draw(shape, dtype=torch.float64, *, tables=TABLES[-1], seed=0, scale=1.0):
    """(q, k, v, candidates), {table: tensor}; a random list with -1, repeats and the cell itself."""
    batch, heads, n_cells, d_head, listed = shape
    generator = torch.Generator().manual_seed(seed)

    def floats(*sizes):
        return (scale * torch.randn(sizes, generator=generator, dtype=torch.float64)).to(dtype)

    qkv = [floats(batch, heads, n_cells, d_head) for _ in range(3)]
    candidates = torch.randint(-1, n_cells, (batch, n_cells, listed), generator=generator)
    candidates[torch.rand(candidates.shape, generator=generator) < 0.3] = -1
    sizes = {"bias": (heads, listed + 1), "key_offset": (heads, listed + 1, d_head)}
    sizes["value_offset"] = sizes["key_offset"]
    return (*qkv, candidates), {name: floats(*sizes[name]) for name in tables}


def truth(q, k, v, candidates, bias=None, key_offset=None, value_offset=None):
    """The definition, cell by cell, in float64."""
    rows = []
    for b in range(q.shape[0]):
        for i in range(q.shape[2]):
            slots = [(0, i)] + [(c + 1, int(j)) for c, j in enumerate(candidates[b, i]) if j >= 0]
            s = torch.tensor([slot for slot, _ in slots])
            j = torch.tensor([cell for _, cell in slots])
            keys, values = k[b][:, j].double(), v[b][:, j].double()
            keys = keys if key_offset is None else keys + key_offset[:, s].double()
            values = values if value_offset is None else values + value_offset[:, s].double()
            scores = (keys * q[b, :, i, None].double()).sum(-1) / math.sqrt(q.shape[3])
            scores = scores if bias is None else scores + bias[:, s].double()
            rows.append((scores.softmax(-1).unsqueeze(-1) * values).sum(1))
    return torch.stack(rows).unflatten(0, (q.shape[0], q.shape[2])).transpose(1, 2)


def leaves(tensors, tables):
    return [t.requires_grad_() for t in (*tensors[:3], *tables.values())]


def gradients(out, wrt, seed=5):
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.autograd.grad(out, wrt, upstream.to(out.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tables", TABLES, ids=lambda t: "+".join(t) or "plain")
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, tables, dtype):
    tensors, options = draw(shape, dtype, tables=tables)
    wrt = leaves(tensors, options)
    out = neighbor_attention(*tensors, **options)
    assert out.dtype == dtype and out.shape == tensors[0].shape
    expected = truth(*tensors, **options)
    torch.testing.assert_close(out.double(), expected, **TOLERANCE[dtype])
    found, exact = gradients(out, wrt), gradients(expected, wrt)
    for name, a, b in zip(("q", "k", "v", *options), found, exact, strict=True):
        limit = TOLERANCE[dtype]
        if name in options:  # sums over all cells
            limit = {"rtol": limit["rtol"], "atol": limit["atol"] * 10}
        torch.testing.assert_close(a.double(), b.double(), **limit, msg=lambda text, name=name: f"{name}: {text}")


def test_on_a_maze_it_is_dense_attention_with_a_mask():
    mazes = poh_ext.generate_mazes(3, 6, algorithm="percolation", seed=2)
    q, k, v = torch.randn(3, 3, 2, 36, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    allowed = mazes.valid_mask() | torch.eye(36, dtype=torch.bool)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed.unsqueeze(1))
    torch.testing.assert_close(neighbor_attention(q, k, v, mazes.neighbors()), expected)


def test_alone_a_cell_gets_its_own_value():
    (q, k, v, candidates), options = draw((2, 2, 19, 12, 4))
    out = neighbor_attention(q, k, v, torch.full_like(candidates, -1), **options)
    torch.testing.assert_close(out, v + options["value_offset"][:, :1])
    out = neighbor_attention(q, k, v, candidates[..., :0], value_offset=options["value_offset"][:, :1])  # C = 0
    torch.testing.assert_close(out, v + options["value_offset"][:, :1])


def test_equal_scores_weigh_equally_and_repeats_count_twice():
    v = torch.arange(4.0, dtype=torch.float64).view(1, 1, 4, 1)
    candidates = torch.tensor([[[1, 1], [0, -1], [3, 2], [-1, -1]]])
    out = neighbor_attention(torch.zeros_like(v), v, v, candidates)
    torch.testing.assert_close(out.flatten(), torch.tensor([2 / 3, 0.5, 7 / 3, 3.0], dtype=torch.float64))
    bias = torch.tensor([[0.0, math.log(2.0), -math.inf]], dtype=torch.float64)
    out = neighbor_attention(torch.zeros_like(v), v, v, candidates, bias=bias)
    torch.testing.assert_close(out.flatten(), torch.tensor([2 / 3, 1 / 3, 8 / 3, 3.0], dtype=torch.float64))


@pytest.mark.parametrize("shape", [(2, 2, 5, 3, 4), (1, 2, 18, 2, 2)])
def test_gradcheck(shape):
    tensors, tables = draw(shape)
    wrt = leaves(tensors, tables)

    def f(q, k, v, *tables):
        return neighbor_attention(q, k, v, tensors[3], **dict(zip(TABLES[-1], tables, strict=True)))

    assert torch.autograd.gradcheck(f, wrt, fast_mode=shape[2] > 5)


@pytest.mark.parametrize("shape", [(0, 2, 5, 4, 4), (2, 0, 5, 4, 4), (2, 2, 0, 4, 4)])
def test_zero_size(shape):
    _, tables = draw((1, 1, 5, 4, 4))
    batch, heads, n_cells, d_head, listed = shape
    q, k, v = torch.zeros(3, batch, heads, n_cells, d_head).unbind()
    candidates = torch.zeros(batch, n_cells, listed, dtype=torch.int64)
    tables = {name: torch.zeros(heads, *t.shape[1:]) for name, t in tables.items()}
    wrt = leaves((q, k, v), tables)
    out = neighbor_attention(q, k, v, candidates, **tables)
    assert out.shape == q.shape
    for leaf, grad in zip(wrt, torch.autograd.grad(out.sum(), wrt), strict=True):
        assert grad.shape == leaf.shape and not grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_scores_choose(dtype):
    tensors, tables = draw((2, 2, 20, 12, 4), dtype, scale=1e6)
    wrt = leaves(tensors, tables)
    out = neighbor_attention(*tensors, **tables)
    torch.testing.assert_close(out.double(), truth(*tensors, **tables), rtol=1e-4, atol=1.0)
    assert all(g.isfinite().all() for g in gradients(out, wrt))


@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_reach_whoever_sees_them_and_nobody_else(which, bad):
    tensors, _ = draw((1, 2, 20, 12, 4), torch.float32)
    candidates = tensors[3]
    tensors["qkv".index(which)][0, 1, 3, 5] = bad
    wrt = leaves(tensors, {})
    out = neighbor_attention(*tensors)
    sees = (candidates[0] == 3).any(-1) if which != "q" else torch.zeros(20, dtype=torch.bool)
    sees[3] = True
    if which != "k" or math.isnan(bad):  # a key of -inf weighs nothing: those cells go on
        assert not out[0, 1, sees].isfinite().all(-1).any()
    assert out[0, 1, ~sees].isfinite().all() and out[0, 0].isfinite().all()
    assert all(g[0, 0].isfinite().all() for g in gradients(out, wrt))
    dq = gradients(neighbor_attention(*tensors), wrt)[0]
    assert dq[0, 1, ~sees].isfinite().all()


def test_views_are_read_by_their_strides():
    (q, k, v, candidates), tables = draw((3, 4, 21, 12, 4), torch.float32)
    expected = neighbor_attention(q, k, v, candidates, **tables)
    wrt = leaves((q, k, v), tables)
    exact = gradients(neighbor_attention(q, k, v, candidates, **tables), wrt)
    packed = torch.stack([q, k, v]).permute(1, 3, 0, 2, 4).contiguous()  # [B, N, 3, H, Dh]
    separate = [t.detach().transpose(-1, -2).contiguous().transpose(-1, -2) for t in (q, k, v)]
    for views in (packed.permute(2, 0, 3, 1, 4).unbind(), separate):
        views = [t.detach().requires_grad_() for t in views]
        out = neighbor_attention(*views, candidates, **tables)
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
        for a, b in zip(gradients(out, [*views, *wrt[3:]]), exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    wide = candidates.repeat_interleave(2, -1)[..., ::2]  # the list and the upstream gradient may be views too
    torch.testing.assert_close(neighbor_attention(q, k, v, wide, **tables), expected, rtol=0, atol=0)
    ones = torch.ones(1, 1, 1, 1).expand_as(q)
    found = torch.autograd.grad(neighbor_attention(q, k, v, candidates), q, ones)
    torch.testing.assert_close(
        found, torch.autograd.grad(truth(q, k, v, candidates).float(), q, ones), rtol=1e-5, atol=1e-5
    )


def test_packed_form_is_the_same():
    (q, k, v, candidates), tables = draw((2, 4, 21, 12, 4), torch.float32)
    packed = torch.stack([q, k, v]).permute(1, 3, 0, 2, 4).contiguous().requires_grad_()
    wrt = leaves((q, k, v), tables)
    out, expected = (
        neighbor_attention_packed(packed, candidates, *tables.values()),
        neighbor_attention(q, k, v, candidates, **tables),
    )
    torch.testing.assert_close(out.transpose(1, 2), expected, rtol=0, atol=0)
    found = gradients(out.transpose(1, 2), [packed, *wrt[3:]])
    exact = gradients(expected, wrt)
    torch.testing.assert_close(found[0].permute(2, 0, 3, 1, 4), torch.stack(exact[:3]))
    torch.testing.assert_close(found[1:], exact[3:])
    with torch.no_grad():
        torch.testing.assert_close(neighbor_attention_packed(packed, candidates, *tables.values()), out)


def test_only_some_need_gradients():
    (q, k, v, candidates), tables = draw((2, 2, 9, 4, 4))
    exact = gradients(neighbor_attention(*leaves((q, k, v), tables)[:3], candidates, **tables), [k, tables["bias"]])
    for t in (q, v, tables["key_offset"], tables["value_offset"]):
        t.requires_grad_(False)
    found = gradients(neighbor_attention(q, k, v, candidates, **tables), [k, tables["bias"]])
    torch.testing.assert_close(found, exact)
    with torch.no_grad():
        assert not neighbor_attention(q, k, v, candidates, **tables).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_float32_tables(dtype):
    tensors, tables = draw((2, 2, 20, 12, 4), dtype)
    wide = {name: t.float().requires_grad_() for name, t in tables.items()}
    out = neighbor_attention(*tensors, **wide)
    torch.testing.assert_close(out, neighbor_attention(*tensors, **tables))
    assert all(g.dtype == torch.float32 for g in gradients(out, list(wide.values())))


def test_results_do_not_depend_on_threads():
    tensors, tables = draw((3, 3, 300, 12, 4), torch.float32)
    wrt = leaves(tensors, tables)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 8):
            torch.set_num_threads(n)
            out = neighbor_attention(*tensors, **tables)
            results.append((out, *gradients(out, wrt)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        same = {"rtol": 0, "atol": 0} if KERNELS else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(other, results[0], **same)


def test_memory_and_time_are_linear_in_the_cells():
    """201 x 201: dense weights would be 6.5 GB."""
    mazes = poh_ext.generate_mazes(1, 201, seed=1)
    q, k, v = (torch.randn(1, 1, 201 * 201, 2, requires_grad=True) for _ in range(3))
    out = neighbor_attention(q, k, v, mazes.neighbors())
    assert out.shape == (1, 1, 201 * 201, 2)
    out.square().mean().backward()
    assert q.grad.isfinite().all() and k.grad.any() and v.grad.any()


def test_compiles_whole_and_agrees():
    tensors, tables = draw((2, 2, 20, 12, 4), torch.float32)
    wrt = leaves(tensors, tables)

    def step(q, k, v, candidates, bias, key_offset, value_offset):
        return neighbor_attention(
            q, k, v, candidates, bias=bias, key_offset=key_offset, value_offset=value_offset
        ).square()

    expected = step(*tensors, **tables)
    out = torch.compile(step, fullgraph=True, backend="aot_eager")(*tensors, **tables)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients(out, wrt), gradients(expected, wrt))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_opcheck(dtype):
    ops = torch.ops.poh_ext
    for shape, names in (((2, 2, 20, 12, 4), TABLES[-1]), ((1, 1, 3, 4, 2), ()), ((0, 2, 5, 4, 4), ("bias",))):
        tensors, tables = draw(shape, dtype, tables=names)
        arguments = *tensors, *(tables.get(name) for name in TABLES[-1])
        torch.library.opcheck(ops.neighbor_attention.default, (*arguments, False))
        with torch.no_grad():
            out, weights = ops.neighbor_attention(*arguments, True)
            torch.library.opcheck(ops.neighbor_attention_backward.default, (out, *arguments, weights))
        leaves(tensors, tables)
        torch.library.opcheck(ops.neighbor_attention.default, (*arguments, True))


@needs_kernels
def test_kernel_agrees_with_reference():
    for dtype in DTYPES:
        tensors, tables = draw((2, 3, 20, 12, 4), dtype)
        expected = reference.neighbor_attention(*tensors, *tables.values())
        torch.testing.assert_close(neighbor_attention(*tensors, **tables), expected, **TOLERANCE[dtype])


@needs_kernels
def test_double_backward_is_refused():
    (q, k, v, candidates), _ = draw((1, 1, 5, 4, 2))
    packed = torch.randn(1, 5, 3, 1, 4, dtype=torch.float64, requires_grad=True)
    q.requires_grad_()
    for out, leaf in (
        (neighbor_attention(q, k, v, candidates), q),
        (neighbor_attention_packed(packed, candidates, None, None, None), packed),
    ):
        (grad,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative in its C"):
            grad.sum().backward()


@pytest.mark.skipif(KERNELS, reason="the C++ kernels have no second derivative")
def test_reference_differentiates_twice():
    tensors, tables = draw((1, 1, 4, 3, 2))
    wrt = leaves(tensors, tables)
    assert torch.autograd.gradgradcheck(lambda q, k, v, *t: reference.neighbor_attention(q, k, v, tensors[3], *t), wrt)


@needs_kernels
def test_a_gradient_needs_save():
    (q, k, v, candidates), _ = draw((1, 1, 5, 4, 2))
    with pytest.raises(RuntimeError, match="needs save=True where a gradient is wanted"):
        torch.ops.poh_ext.neighbor_attention(q.requires_grad_(), k, v, candidates, None, None, None, False)


@pytest.mark.parametrize("cell", [20, -2, 2**40])
def test_candidates_out_of_range_are_named(cell):
    (q, k, v, candidates), _ = draw((2, 2, 20, 12, 4))
    candidates[1, 17, 2] = candidates[1, 18, 0] = cell
    with pytest.raises(IndexError, match=rf"candidates\[1, 17, 2\] is {cell}, but there are 20 cells \(-1 pads\)"):
        neighbor_attention(q, k, v, candidates)


Q = torch.zeros(2, 3, 9, 4)
LIST = torch.zeros(2, 9, 4, dtype=torch.int64)


@pytest.mark.parametrize("change, error, words", [
    ({"q": [1.0]}, TypeError, "q must be a tensor, got list"),
    ({"q": Q.int()}, TypeError, "q must be float32 or float64 or bfloat16 or float16, got int32"),
    ({"q": Q[0]}, ValueError, r"q must have shape \[B, H, N, Dh\], got \[3, 9, 4\]"),
    ({"q": Q[..., :0]}, ValueError, "q must have Dh >= 1 features per head"),
    ({"k": Q[:, :2]}, ValueError, r"k must have shape \[2, 3, 9, 4\], got \[2, 2, 9, 4\]"),
    ({"v": Q.double()}, TypeError, "v must be float32, got float64"),
    ({"v": Q.to("meta")}, ValueError, f"v must be on {DEVICE}"),
    ({"candidates": LIST.int()}, TypeError, "candidates must be int64, got int32"),
    ({"candidates": LIST[:, :8]}, ValueError, r"candidates must have shape \[2, 9, C\], got \[2, 8, 4\]"),
    ({"bias": torch.zeros(3, 4)}, ValueError, r"bias must have shape \[3, 5\], got \[3, 4\]"),
    ({"bias": torch.zeros(3, 5).double()}, TypeError, "bias must be float32, got float64"),
    ({"key_offset": torch.zeros(3, 5)}, ValueError, r"key_offset must have shape \[3, 5, 4\]"),
    ({"value_offset": torch.zeros(2, 5, 4)}, ValueError, r"value_offset must have shape \[3, 5, 4\]"),
])  # fmt: skip
def test_bad_arguments_are_named(change, error, words):
    with pytest.raises(error, match=words):
        neighbor_attention(**{"q": Q, "k": Q, "v": Q, "candidates": LIST, **change})


@needs_kernels
def test_direct_calls_are_guarded():
    ops = torch.ops.poh_ext

    def call(q=Q, k=Q, v=Q, candidates=LIST, bias=None):
        return ops.neighbor_attention(q, k, v, candidates, bias, None, None, True)

    with pytest.raises(ValueError, match="q must have shape"):
        call(q=Q[0])
    with pytest.raises(ValueError, match="q must have Dh >= 1"):
        call(*[Q[..., :0]] * 3)
    with pytest.raises(ValueError, match="k and v must have the shape and dtype of q"):
        call(v=Q[:1])
    with pytest.raises(ValueError, match="k and v must have the shape and dtype of q"):
        call(k=Q.double())
    with pytest.raises(ValueError, match="q must be float32"):
        call(*[Q.long()] * 3)
    with pytest.raises(ValueError, match="candidates must have shape"):
        call(candidates=LIST[0])
    with pytest.raises(ValueError, match="candidates must have a list for each cell"):
        call(candidates=LIST[:, :8])
    with pytest.raises(ValueError, match="candidates has the wrong dtype"):
        call(candidates=LIST.int())
    with pytest.raises(ValueError, match="must have a row for each head and slot"):
        call(bias=torch.zeros(3, 4))
    weights = call()[1]
    with pytest.raises(ValueError, match="grad must be"):
        ops.neighbor_attention_backward(Q, Q, Q, Q, LIST, None, None, None, weights)
    with pytest.raises(ValueError, match="weights must be those of the forward pass"):
        ops.neighbor_attention_backward(torch.zeros(2, 9, 3, 4), Q, Q, Q, LIST, None, None, None, weights[:1])
