"""Timed cases of neighbour attention on mazes, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

import poh_ext
from poh_ext.bench.case import OURS, Case, close

DENSE_CELLS = 2000  # beyond, the mask and the weights of the dense form are gigabytes
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}  # 5e-2 for half types: the eager forms round on the way


def gathered_attention(q, k, v, slots, absent, bias, key_offset, value_offset):
    """Attention in its gather form. slots [B, N, C + 1]: the cell, then the candidates; absent [B, 1, N, C + 1]."""
    index = slots.flatten(1)[:, None, :, None].expand(-1, q.size(1), -1, q.size(3))
    keys = k.gather(2, index).unflatten(2, slots.shape[1:]) + key_offset[:, None]
    values = v.gather(2, index).unflatten(2, slots.shape[1:]) + value_offset[:, None]
    scores = torch.einsum("bhnd,bhnsd->bhns", q, keys) / math.sqrt(q.size(3)) + bias[:, None]
    weights = scores.masked_fill(absent, -torch.inf).softmax(-1)
    return torch.einsum("bhns,bhnsd->bhnd", weights, values)


def attention_cases(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(size name, builder) of each case. "offsets": with all tables. "plain": without tables, as in the dense form."""

    def case(name, batch, size, heads, d_head, offsets):
        def build() -> Case:
            generator = torch.Generator().manual_seed(0)

            def floats(*shape):
                return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()

            cells = size * size
            # Views of a packed projection, as a model has them.
            packed = floats(batch, cells, 3, heads, d_head)
            tables = [floats(heads, 5), floats(heads, 5, d_head), floats(heads, 5, d_head)] if offsets else []
            upstream = torch.randn(batch, heads, cells, d_head, generator=generator).to(device, dtype)
            mazes = poh_ext.generate_mazes(batch, size, device=device)
            neighbors = mazes.neighbors()
            # What the rivals need instead of the list is made beforehand: they must not pay for building it.
            own = torch.arange(cells, device=device)[None, :, None].expand(batch, cells, 1)
            slots = torch.cat([own, torch.where(neighbors < 0, own, neighbors)], -1)
            absent = torch.cat([torch.zeros_like(own, dtype=torch.bool), neighbors < 0], -1)[:, None]

            def variant(attend):
                def call():
                    out = attend(*packed.permute(2, 0, 3, 1, 4).unbind())
                    return (out.detach(), *torch.autograd.grad(out, [packed, *tables], upstream))

                return call

            def ours(q, k, v):
                named = dict(zip(("bias", "key_offset", "value_offset"), tables, strict=False))
                return poh_ext.neighbor_attention(q, k, v, neighbors, **named)

            def gather(function):
                zeros = tables or [
                    torch.zeros((), device=device, dtype=dtype).expand(heads, 5, *w) for w in ((), (d_head,), (d_head,))
                ]
                return lambda q, k, v: function(q, k, v, slots, absent, *zeros)

            rivals = {
                "eager gather": gather(gathered_attention),
                "torch.compile": gather(torch.compile(gathered_attention)),
            }
            if not offsets and cells <= DENSE_CELLS:
                allowed = (mazes.valid_mask() | torch.eye(cells, dtype=torch.bool, device=device)).unsqueeze(1)
                rivals["dense masked SDPA"] = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, allowed)
            variants = {name: variant(f) for name, f in {OURS: ours, **rivals}.items()}
            # Forward: q, k, v in, out and weights out; backward: q, k, v, gradient and weights in, three gradients out.
            traffic = packed.element_size() * batch * heads * cells * (11 * d_head + 10)
            label = f"neighbour attention {name} B{batch} N{cells} H{heads} Dh{d_head}"
            return Case("attention", label, variants, close(TOLERANCE.get(dtype, 5e-2)), traffic)

        return name, build

    yield case("maze12", 32, 12, 4, 12, True)
    yield case("maze12-plain", 32, 12, 4, 12, False)
    yield case("maze30", 8, 30, 8, 32, True)
    yield case("maze30-plain", 8, 30, 8, 32, False)
    yield case("maze201", 1, 201, 4, 12, True)
