"""Gradient accumulation: 4 micro-batches of unequal numbers of terms give the step of the whole batch.

python examples/gradient_accumulation.py

The mean of the micro-batches' means would weight a term of a short micro-batch more than one of a long one. So the sums
are accumulated, and the gradients are divided by the weight of all terms before the step. Data-parallel processes do
the same: they add up their weights with dist.all_reduce (and undo the mean that DDP takes: times the world size).
"""

import torch
import torch.nn.functional as F
from torch import nn

import poh_ext

CLASS_WEIGHT = torch.linspace(0.5, 1.5, 50)


def plain_loss(logits, labels):
    """The sum of the terms, and the weight of all of them, which "mean" would divide by."""
    weight = CLASS_WEIGHT[labels[labels != -100]].sum()
    return F.cross_entropy(logits, labels, CLASS_WEIGHT, reduction="sum"), weight


def fused_loss(logits, labels):
    loss, metrics = poh_ext.cross_entropy(logits, labels, CLASS_WEIGHT, reduction="sum", return_metrics=True)
    return loss, metrics.weight.sum()


def train(loss_of, micro_batches=4, steps=20):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 50))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        tokens = torch.randint(50, (16, 32))
        labels = (3 * tokens + 1) % 50
        labels[torch.arange(32) >= torch.randint(33, (16, 1))] = -100  # padding, in some rows from the start
        optimizer.zero_grad()
        total, weight = torch.zeros(()), torch.zeros(())
        for part_tokens, part_labels in zip(tokens.chunk(micro_batches), labels.chunk(micro_batches), strict=True):
            loss, part_weight = loss_of(model(part_tokens).flatten(0, 1), part_labels.flatten())
            loss.backward()
            total, weight = total + loss.detach(), weight + part_weight
        for parameter in model.parameters():
            parameter.grad /= weight
        optimizer.step()
        losses.append(total / weight)
    return torch.stack(losses)


if __name__ == "__main__":
    plain, fused, whole = train(plain_loss), train(fused_loss), train(fused_loss, micro_batches=1)
    print(
        f"loss {plain[0]:.4f} -> {plain[-1]:.6f} with F.cross_entropy, {fused[-1]:.6f} with poh_ext.cross_entropy, "
        f"{whole[-1]:.6f} with poh_ext and one micro-batch"
    )
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused, whole, rtol=1e-4, atol=1e-4)
