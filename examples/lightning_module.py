"""A Lightning module whose loss never forms the logits: linear_cross_entropy in training_step.

pip install lightning && python examples/lightning_module.py
"""

import lightning
import torch
import torch.nn.functional as F
from torch import nn

import poh_ext


def plain_loss(hidden, weight, targets):
    return F.cross_entropy(F.linear(hidden, weight).flatten(0, -2), targets.flatten())


class Counter(lightning.LightningModule):
    """Reads a token and says the next one, of 500."""

    def __init__(self, linear_cross_entropy):
        super().__init__()
        self.linear_cross_entropy, self.losses = linear_cross_entropy, []
        self.body = nn.Sequential(nn.Embedding(500, 64), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
        self.head = nn.Linear(64, 500, bias=False)

    def forward(self, tokens):
        return self.body(tokens)

    def training_step(self, batch, index):
        tokens, targets = batch
        loss = self.linear_cross_entropy(self(tokens), self.head.weight, targets)
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def train(linear_cross_entropy, steps=20):
    lightning.seed_everything(0, verbose=False)
    tokens = torch.randint(500, (steps * 16, 32))
    data = torch.utils.data.TensorDataset(tokens, (tokens + 1) % 500)
    model = Counter(linear_cross_entropy)
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                                enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=16, shuffle=True))
    return torch.stack(model.losses)


if __name__ == "__main__":
    plain, fused = train(plain_loss), train(poh_ext.linear_cross_entropy)
    print(
        f"loss {plain[0]:.4f} -> {plain[-1]:.6f} with F.cross_entropy, {fused[-1]:.6f} with "
        "poh_ext.linear_cross_entropy"
    )
    torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-3)
