"""A small GPT with tied embeddings that predicts 4 tokens ahead, trained on documents packed into sequences.

python examples/small_gpt.py
"""

import torch
import torch.nn.functional as F
from torch import nn

import poh_ext

VOCABULARY, LENGTH, WIDTH, HEADS, DEPTH, HORIZONS = 31, 64, 64, 4, 2, 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x, mask):
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(*qkv, mask).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks, self.norm = nn.ModuleList(Block() for _ in range(DEPTH)), nn.LayerNorm(WIDTH)
        nn.init.normal_(self.embedding.weight, std=WIDTH**-0.5)  # the head has the same weight

    def forward(self, tokens, segments):
        mask = (segments[:, :, None] == segments[:, None]).tril()[:, None]  # within a document, and back in time
        x = self.embedding(tokens) + self.place.weight
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


def batch(size=16):
    """Documents that count up in steps of their own, packed: tokens and segments [size, LENGTH]."""
    segments = (torch.rand(size, LENGTH) < 0.1).cumsum(1)  # a document starts at one token of 10
    first, step = torch.randint(VOCABULARY, (size, LENGTH)), torch.randint(1, 4, (size, LENGTH))
    return (first.gather(1, segments) + step.gather(1, segments) * torch.arange(LENGTH)) % VOCABULARY, segments


def plain_loss(hidden, weight, tokens, segments):
    """Token i + k from position i, for k = 1 to 4; the mean over all pairs within one document."""
    terms = []
    for k in range(1, HORIZONS + 1):
        targets = torch.where(segments[:, k:] == segments[:, :-k], tokens[:, k:], -100)
        terms.append((F.linear(hidden[:, :-k], weight).flatten(0, 1), targets.flatten()))
    return F.cross_entropy(*(torch.cat(part) for part in zip(*terms, strict=True)))


def fused_loss(hidden, weight, tokens, segments):
    return poh_ext.multi_horizon_linear_cross_entropy(hidden, weight, tokens, horizons=HORIZONS, segments=segments)


def train(loss_of, steps=30):
    torch.manual_seed(0)
    model, losses = GPT(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        tokens, segments = batch()
        loss = loss_of(model(tokens, segments), model.embedding.weight, tokens, segments)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


if __name__ == "__main__":
    plain, fused = train(plain_loss), train(fused_loss)
    print(f"loss {plain[0]:.4f} -> {plain[-1]:.6f} with F.cross_entropy at each horizon, {fused[-1]:.6f} with poh_ext")
    torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-3)
