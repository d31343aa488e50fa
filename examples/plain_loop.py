"""A plain training loop: F.cross_entropy becomes poh_ext.cross_entropy, and nothing else changes.

python examples/plain_loop.py
"""

import torch
import torch.nn.functional as F
from torch import nn

import poh_ext


def train(cross_entropy, steps=50):
    """The loss of each step of a classifier that learns to sort points by the nearest of 100 centres."""
    torch.manual_seed(0)
    centres = torch.randn(100, 16)
    model = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 100))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        points = torch.randn(256, 16)
        labels = torch.cdist(points, centres).argmin(1)
        labels[::8] = -100  # without a label
        loss = cross_entropy(model(points), labels, ignore_index=-100, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


if __name__ == "__main__":
    plain, fused = train(F.cross_entropy), train(poh_ext.cross_entropy)
    print(f"loss {plain[0]:.4f} -> {plain[-1]:.6f} with F.cross_entropy, {fused[-1]:.6f} with poh_ext.cross_entropy")
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)
