"""A tiny model and tokenizer, made on the spot and kept where `from_pretrained` finds them, a reward, and
the settings of a short `PPOTrainer` run. Needs no `datasets`.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments

from adaptive_warmup.integrations.ppo_trainer import PPOConfig
from adaptive_warmup.ppo.tasks.tokenizer import train_tokenizer

# The setting, by its older name where transformers has not got the newer one yet.
CHECKPOINTING = ("gradient", "activation")[hasattr(TrainingArguments, "activation_checkpointing")] + "_checkpointing"
_folder = tempfile.TemporaryDirectory()  # goes with the tests' process


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["one two three four"], [], 264)


@functools.cache
def saved(kind: type[Any] = Qwen2ForCausalLM) -> str:
    """The path of a tiny model: trainers that need a reference load it once more."""
    torch.manual_seed(0)
    ids = {"pad_token_id": tokenizer().pad_token_id, "eos_token_id": tokenizer().eos_token_id, "bos_token_id": None}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_labels": 1}
    path = Path(_folder.name) / kind.__name__
    kind(Qwen2Config(vocab_size=len(tokenizer()), **sizes, **heads, **ids)).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return str(path)


def model(kind: type[Any] = Qwen2ForCausalLM) -> nn.Module:
    loaded: nn.Module = kind.from_pretrained(saved(kind))
    return loaded


def low_bytes(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward: the share of tokens from the lower half of the vocabulary."""
    return [sum(token < 132 for token in ids) / len(ids) for ids in completion_ids]


def settings(folder: Path | str, **arguments: Any) -> PPOConfig:
    plain: dict[str, Any] = {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
        "value_learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return PPOConfig(str(folder), **{**plain, **arguments})


def logged(trainer: Trainer, name: str) -> list[float]:
    return [logs[name] for logs in trainer.state.log_history if name in logs]
