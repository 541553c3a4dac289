"""Tiny runs of every trainer that the contract holds for, most of them of TRL, on data made on the spot."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from torch import Tensor
from transformers import (
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from adaptive_warmup.integrations.ppo_trainer import PPOConfig, PPOTrainer
from tests.integrations.tiny import CHECKPOINTING, low_bytes, model, tokenizer

HOSTS = ("Trainer", "SFT", "Reward", "DPO", "KTO", "RLOO", "GRPO", "OnlineDPO", "PPO")
ON_POLICY = ("RLOO", "GRPO", "OnlineDPO")
BETA = 0.2
LENGTH = 6

disable_progress_bars()
gc.freeze()  # each train() collects garbage, which else goes through all that was imported


def _texts(rows: int) -> Dataset:
    return Dataset.from_dict({"text": [f"one two three {i}" for i in range(rows)]})


def pairs(rows: int) -> Dataset:
    columns = {"prompt": "one", "chosen": " two", "rejected": " four"}
    return Dataset.from_dict({name: [f"{text} {i}" for i in range(rows)] for name, text in columns.items()})


def _judged(rows: int) -> Dataset:
    completions = [(" two", True), (" four", False)]
    return Dataset.from_dict(
        {
            "prompt": [f"one {i}" for i in range(rows)],
            "completion": [completions[i % 2][0] for i in range(rows)],
            "label": [completions[i % 2][1] for i in range(rows)],
        }
    )


def _prompts(rows: int) -> Dataset:
    return Dataset.from_dict({"prompt": [f"one {i}" for i in range(rows)]})


def _tokens(rows: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, len(tokenizer()), (rows, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def run(host: str, folder: Path, callbacks: Sequence[TrainerCallback] = (), **arguments: Any) -> Trainer:
    """One of `HOSTS`, ready to train; `reward` replaces the reward of those that have one."""
    reward = arguments.pop("reward", low_bytes)
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    settings |= {CHECKPOINTING: False} if host != "Trainer" else {}
    rollout = {"num_generations": 2, "max_completion_length": LENGTH, "beta": BETA}
    rewarded = {"reward_funcs": reward}
    kind, config, own, data, extra = _recipe(host, rollout, rewarded)
    with_text = {} if host == "Trainer" else {"processing_class": tokenizer()}
    made: Trainer = kind(
        model=model(Qwen2ForSequenceClassification if host == "Reward" else Qwen2ForCausalLM),
        args=config(**{**settings, **own, **arguments}),
        train_dataset=data(48),
        eval_dataset=data(4),
        callbacks=list(callbacks),
        **with_text,
        **extra,
    )
    return made


def _recipe(host: str, rollout: dict[str, Any], rewarded: dict[str, Any]) -> tuple[Any, ...]:
    if host == "OnlineDPO":
        from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

        own = {"max_new_tokens": LENGTH, "max_length": 32, "beta": BETA}
        return OnlineDPOTrainer, OnlineDPOConfig, own, _prompts, rewarded
    recipes: dict[str, tuple[Any, ...]] = {
        "Trainer": (Trainer, TrainingArguments, {}, _tokens, {}),
        "SFT": (SFTTrainer, SFTConfig, {"max_length": 16}, _texts, {}),
        "Reward": (RewardTrainer, RewardConfig, {"max_length": 16}, pairs, {}),
        "DPO": (DPOTrainer, DPOConfig, {"max_length": 16}, pairs, {}),
        "KTO": (KTOTrainer, KTOConfig, {"max_length": 16}, _judged, {}),
        "RLOO": (RLOOTrainer, RLOOConfig, rollout, _prompts, rewarded),
        "GRPO": (GRPOTrainer, GRPOConfig, rollout, _prompts, rewarded),
        "PPO": (PPOTrainer, PPOConfig, {"max_completion_length": LENGTH, "kl_coef": BETA}, _prompts, rewarded),
    }
    return recipes[host]
