"""Data-parallel training: DistributedDataParallel and FSDP2 (fully_shard), each with a loss that forms no logits.

torchrun --nproc-per-node 2 examples/data_parallel.py

The loss is computed in the forward of the head. DDP wants it inside the model that it wraps. fully_shard gathers the
weight of a head there: outside, head.weight is a DTensor, of which a process holds a part, and the losses refuse it.
"""

import gc

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import poh_ext


class Head(nn.Linear):
    def forward(self, hidden, targets, linear_cross_entropy):
        return linear_cross_entropy(hidden, self.weight, targets, self.bias)


class Counter(nn.Module):
    """Reads a token and says the next one, of 500. It returns the loss."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(500, 64), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64),
                                  nn.LayerNorm(64))  # fmt: skip
        self.head = Head(64, 500)

    def forward(self, tokens, targets, linear_cross_entropy):
        return self.head(self.body(tokens), targets, linear_cross_entropy)


def plain_loss(hidden, weight, targets, bias):
    return F.cross_entropy(F.linear(hidden, weight, bias).flatten(0, -2), targets.flatten())


def sharded(model):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))  # "cuda" on GPUs
    for unit in (model.body, model.head, model):
        fully_shard(unit, mesh=mesh)
    return model


def train(linear_cross_entropy, distribute, steps=20):
    """The mean over the processes, whose batches have the same number of terms (else: gradient_accumulation.py)."""
    torch.manual_seed(0)
    model = distribute(Counter())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(dist.get_rank())
    losses = []
    for _ in range(steps):
        tokens = torch.randint(500, (16, 32), generator=generator)
        loss = model(tokens, (tokens + 1) % 500, linear_cross_entropy)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    losses = torch.stack(losses)
    dist.all_reduce(losses)
    return losses / dist.get_world_size()


if __name__ == "__main__":
    dist.init_process_group("gloo")  # "nccl" on GPUs
    for distribute in (DistributedDataParallel, sharded):
        plain, fused = train(plain_loss, distribute), train(poh_ext.linear_cross_entropy, distribute)
        if dist.get_rank() == 0:
            print(
                f"{distribute.__name__}: loss {plain[0]:.4f} -> {plain[-1]:.6f} with F.cross_entropy, "
                f"{fused[-1]:.6f} with poh_ext.linear_cross_entropy"
            )
        torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-3)
    gc.collect()  # models in cycles of references would hold their groups, whose threads must end before Python does
    dist.destroy_process_group()
