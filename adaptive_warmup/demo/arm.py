"""One arm of the demo, in a process of its own: the PPO loop under one warmup, logged step by step."""

from __future__ import annotations

import copy
import math
import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from adaptive_warmup import AdaptiveWarmup
from adaptive_warmup.history import DecisionLog
from adaptive_warmup.ppo import PPO, PPOConfig
from adaptive_warmup.ppo.reference import reference
from adaptive_warmup.ppo.tasks import make

_EVALUATION = 512  # episodes of the final evaluation
_VALUE_RATIO = 0.015  # Search-R1's warmup ratio for the critic, in all arms


@dataclass(frozen=True)
class Settings:
    """What the user chose: peak lr of the policy, RL steps, seed, task, size of the policy."""

    lr: float
    steps: int
    seed: int
    task: str
    size: str


@dataclass(frozen=True)
class Arm:
    """A warmup to compare: its length as a share of the run, and the law."""

    name: str
    ratio: float
    law: str

    @property
    def slug(self) -> str:
        """For file names."""
        return self.name.replace(" ", "-")


ARMS = (Arm("ratio 0.95", 0.95, "linear"), Arm("ratio 0.285", 0.285, "linear"), Arm("adaptive", 0.285, "feedback"))


@dataclass(frozen=True)
class Progress:
    """What an arm tells the display after a step."""

    arm: str
    step: int
    lr: float
    score: float
    phase: str
    reason: str


def run(arm: Arm, settings: Settings, folder: Path, tell: Callable[[Progress], None]) -> None:
    """Train and evaluate one arm; its log is `<folder>/<arm>.jsonl`, complete up to the last step at all times."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    torch.set_num_threads(1)  # the arms share the machine
    quiet()
    about: dict[str, Any] = {
        "arm": arm.name,
        "lr": settings.lr,
        "task": settings.task,
        "seed": settings.seed,
        "steps": settings.steps,
    }
    log = DecisionLog(folder / f"{arm.slug}.jsonl", **about)
    ppo = _ppo(arm, settings, log)
    scheduler = ppo.scheduler
    assert isinstance(scheduler, AdaptiveWarmup)
    for step, metrics in enumerate(ppo.run(settings.steps, progress=False)):
        if (parent := multiprocessing.parent_process()) and not parent.is_alive():
            return  # killed, it could not end us
        now = scheduler.decision
        tell(Progress(arm.name, step, metrics["lr"], metrics["objective/scores"], now.phase, now.reasons[0]))
    log.add(evaluation=ppo.evaluate(_EVALUATION, seed=settings.seed + 1))


def quiet() -> None:
    """No word of transformers' on kernels for GPUs, no bar for loading a small policy."""
    words: Any = transformers_logging  # untyped
    words.set_verbosity_error()
    words.disable_progress_bar()


def _ppo(arm: Arm, settings: Settings, log: DecisionLog) -> PPO:
    task = make(settings.task)
    policy, tokenizer = reference(task, settings.size)
    config = PPOConfig(learning_rate=settings.lr, kl_coef=0.02, max_response_tokens=64, seed=settings.seed)
    warmups = [math.ceil(ratio * settings.steps) for ratio in (arm.ratio, _VALUE_RATIO)]

    def warmup(optimizer: torch.optim.Optimizer) -> AdaptiveWarmup:
        return AdaptiveWarmup(optimizer, warmup_steps=warmups, law=[arm.law, "linear"], log=log)

    return PPO(config, policy, copy.deepcopy(policy), task, tokenizer, scheduler=warmup)
