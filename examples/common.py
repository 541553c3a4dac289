"""What the examples share: their options, a policy made on the spot, and the end of the story."""

from __future__ import annotations

import argparse

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer

from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from adaptive_warmup.ppo.tasks.tokenizer import train_tokenizer


def parse(description: str | None, name: str) -> argparse.Namespace:
    """The options of an example; `model` becomes a path where none is given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name or path of a model; without it a tiny one is made")
    parser.add_argument("--out", default=f"out/{name}", help="folder for the run's logs (%(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps (%(default)s)")
    parser.add_argument("--lr", type=float, default=0.02, help="peak lr (%(default)s: far too large, on purpose)")
    parser.add_argument("--report-to", nargs="*", default=[], help="tensorboard, trackio, wandb")
    options = parser.parse_args()
    options.model = options.model or tiny_model(f"{options.out}/model")
    return options


def tiny_model(folder: str) -> str:
    """Save an untrained model that reads bytes, and its tokenizer; the path serves where a hub's name does."""
    tokenizer = train_tokenizer([], [], 258)  # the bytes, padding and end of text
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def digits(completions: list[str], **_: object) -> list[float]:
    """A reward: the share of digits in the response."""
    return [sum(letter in "0123456789" for letter in text) / max(len(text), 1) for text in completions]


def tell(trainer: Trainer, warmup: AdaptiveWarmupCallback, what: str) -> None:
    """Save the log, as trainer_state.json, which `adaptive-warmup replay` reads; say how it went."""
    trainer.save_state()
    values = [logs[what] for logs in trainer.state.log_history if what in logs]
    decision = warmup.decision
    assert decision is not None
    print(f"{what}: {values[0]:.2f} at first, {values[-1]:.2f} at last")
    print(f"signals: loss, grad_norm, {', '.join(f'{name} ({key})' for name, key in warmup.sources.items())}")
    print(f"{decision.phase} at {decision.factor:.2g} of the peak: {'; '.join(decision.reasons)}")
