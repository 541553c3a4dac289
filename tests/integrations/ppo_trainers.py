"""Tiny `PPOTrainer`s, on a model made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import Gemma3Config

from adaptive_warmup.integrations.ppo_trainer import PPOTrainer
from adaptive_warmup.ppo import Problem
from tests.integrations.tiny import low_bytes, model, settings, tokenizer

PROMPTS = Dataset.from_dict({"prompt": [f"one {i}" for i in range(64)], "answer": [str(i) for i in range(64)]})


class Letters:
    """A capital letter ends the first turn, upon which " ok" is inserted, and the second, which ends the episode."""

    stops = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    max_turns = 1

    def __init__(self) -> None:
        self.answers: list[Any] = []

    def sample(self, count: int, seed: int, split: str = "train") -> list[Problem]:
        return [Problem(f"one {i}", str(i)) for i in range(count)]

    def reply(self, problem: Problem, response: str) -> str | None:
        self.answers.append(problem.answer)
        return " ok"

    def score(self, problem: Problem, response: str) -> float:
        return share(response)


def share(text: str) -> float:
    """The share of characters from the lower half of ASCII."""
    return sum(ord(letter) < 64 for letter in text) / max(len(text), 1)


def make(folder: Path | str, policy: Any = None, parts: dict[str, Any] | None = None, **arguments: Any) -> PPOTrainer:
    given: dict[str, Any] = {"reward_funcs": low_bytes, "train_dataset": PROMPTS, "processing_class": tokenizer()}
    given |= {"reward_funcs": None} if parts and "environment" in parts else {}
    args = settings(folder, **arguments)
    return PPOTrainer(model() if policy is None else policy, args, **{**given, **(parts or {})})


def close(mine: list[Tensor], theirs: list[Tensor], atol: float) -> bool:
    return all(a.allclose(b, rtol=0, atol=atol) for a, b in zip(mine, theirs, strict=True))


def seeing(vocabulary: int) -> Gemma3Config:
    """Of a tiny model that sees, too; its text model lies within, and three tokens more are of images."""
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"head_dim": 16, "num_key_value_heads": 1, "vocab_size": vocabulary + 3, "max_position_embeddings": 64}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    sight = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sight |= {"image_size": 28, "patch_size": 14}
    images = {"image_token_index": vocabulary, "boi_token_index": vocabulary + 1, "eoi_token_index": vocabulary + 2}
    return Gemma3Config(text_config={**text, **ids}, vision_config=sight, **images)
