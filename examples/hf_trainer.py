"""The Trainer of Hugging Face with another loss: compute_loss_func, here for a small Llama made from its config.

pip install transformers accelerate && python examples/hf_trainer.py
"""

import tempfile

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

import poh_ext


class Counting(torch.utils.data.Dataset):
    """Sequences of 8 to 32 tokens that count up, padded: labels of -100 are ignored."""

    def __len__(self):
        return 256

    def __getitem__(self, index):
        place = torch.arange(32)
        tokens, padding = (index + place) % 61, place >= 8 + index % 25
        return {"input_ids": tokens, "attention_mask": (~padding).long(), "labels": tokens.masked_fill(padding, -100)}


def train(cross_entropy):
    def loss_of(outputs, labels, num_items_in_batch=None):
        """The Trainer counts the labels of all micro-batches of a step: the sum over them is what it divides by."""
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return cross_entropy(logits, targets, reduction="sum") / num_items_in_batch

    set_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=20, per_device_train_batch_size=8, gradient_accumulation_steps=2, learning_rate=3e-3,
            logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True)  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=Counting(), compute_loss_func=loss_of)
        trainer.train()
    return torch.tensor([float(log["loss"]) for log in trainer.state.log_history if "loss" in log])


if __name__ == "__main__":
    plain, fused = train(F.cross_entropy), train(poh_ext.cross_entropy)
    print(f"loss {plain[0]:.4f} -> {plain[-1]:.4f} with F.cross_entropy, {fused[-1]:.4f} with poh_ext.cross_entropy")
    torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-3)
