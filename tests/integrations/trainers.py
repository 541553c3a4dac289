"""Tiny runs of the real `transformers.Trainer`, and a record of what every update truly ran at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer, TrainerCallback, TrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType

from adaptive_warmup import Signals
from adaptive_warmup.controller import Decision
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback

PEAK = 0.01
STEPS = 12
WARMUP = 4


class Line(nn.Module):
    """Linear regression, the least that a Trainer can train."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(4, generator=generator))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        y = x @ self.weight + self.bias
        return {"loss": (y - labels).square().mean(), "logits": y}


def rows(count: int = 20, outlier: int | None = None) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator)
    labels = x.sum(1) + 0.1 * torch.randn(count, generator=generator)
    if outlier is not None:
        labels[outlier] *= 1e4
    return [{"x": x[i], "labels": labels[i]} for i in range(count)]


class Record(TrainerCallback):
    """The lrs read within every `optimizer.step()`, what a reporter is given, and the callback's own view."""

    def __init__(self, warmup: AdaptiveWarmupCallback | None = None) -> None:
        self.warmup = warmup
        self.groups: list[list[float]] = []
        self.logs: list[dict[str, float]] = []
        self.signals: list[Signals | None] = []
        self.decisions: list[Decision | None] = []

    @property
    def lrs(self) -> list[float]:
        return [lrs[0] for lrs in self.groups]

    def logged(self, name: str) -> list[float]:
        return [logs[name] for logs in self.logs if "loss" in logs and name in logs]

    def on_train_begin(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)
        self._hook = inner.register_step_pre_hook(
            lambda optimizer, *_: self.groups.append([float(group["lr"]) for group in optimizer.param_groups])
        )

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._hook.remove()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        self.logs.append({"step": state.global_step, **logs})

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.warmup and self.warmup.regulator and self.warmup.regulator.signals:
            self.signals.append(self.warmup.regulator.signals)
            self.decisions.append(self.warmup.decision)

    on_epoch_end = on_step_begin


class Plant(TrainerCallback):
    """Reports a KL that is quadratic in the lr of the step, and wiggles; `bears` is the lr at which it is .01."""

    def __init__(self, record: Record, warmup: AdaptiveWarmupCallback, bears: float, wiggle: float = 0.0) -> None:
        self.record, self.warmup, self.bears, self.wiggle = record, warmup, bears, wiggle

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        noise = math.exp(self.wiggle * math.sin(5.0 * state.global_step))
        self.warmup.observe(
            kl=0.01 * (self.record.lrs[-1] / self.bears) ** 2 * noise, task_reward=math.cos(state.global_step)
        )


class Told(TrainerCallback):
    """Each of several processes reports a KL of its own: .01 at a third of the peak by the first, more by others."""

    def __init__(self, warmup: AdaptiveWarmupCallback) -> None:
        self.warmup = warmup

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
        used = optimizer.param_groups[0]["lr"] / (PEAK / 3)
        self.warmup.observe(kl=0.01 * used**2 * 9**args.process_index)


def trainer(
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    cls: type[Trainer] = Trainer,
    model: nn.Module | None = None,
    data: Any = None,
    optimizers: tuple[Any, Any] = (None, None),
    compute_loss_func: Callable[..., Any] | None = None,
    **arguments: Any,
) -> Trainer:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": PEAK,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    data = rows() if data is None else data
    return cls(
        model=model or Line(),
        args=TrainingArguments(**{**settings, **arguments}),
        train_dataset=data,
        eval_dataset=data[:4],
        callbacks=list(callbacks),
        optimizers=optimizers,
        compute_loss_func=compute_loss_func,
    )


# Schedules that step on a metric move at every evaluation here: no loss is ever better by so much as the threshold.
_EACH_3 = {"eval_strategy": "steps", "eval_steps": 3}
_MOVES = {"factor": 0.5, "patience": 0, "threshold": 1e9, "threshold_mode": "abs"}

SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {},
    "constant": {},
    "constant_with_warmup": {},
    "polynomial": {"lr_scheduler_kwargs": {"power": 2.0, "lr_end": 1e-4}},
    "cosine_with_restarts": {"lr_scheduler_kwargs": {"num_cycles": 2}},
    "cosine_with_min_lr": {"lr_scheduler_kwargs": {"min_lr": 1e-3}},
    "inverse_sqrt": {},
    "warmup_stable_decay": {"lr_scheduler_kwargs": {"num_decay_steps": 4}},
    "reduce_lr_on_plateau": {**_EACH_3, "lr_scheduler_kwargs": {**_MOVES, "min_lr": 0.3 * PEAK}},
    "greedy": {**_EACH_3, "lr_scheduler_kwargs": {**_MOVES, "min_lr": 0.6 * PEAK, "max_lr": 2 * PEAK}},
}
# The first evaluation is better than nothing at all (GreedyLR doubles the lr), each later one is worse (halved).
METRIC_DRIVEN = {
    "reduce_lr_on_plateau": [1.0] * 6 + [0.5] * 3 + [0.3] * 3,
    "greedy": [1.0] * 3 + [2.0] * 3 + [1.0] * 3 + [0.6] * 3,
}
if "greedy" not in list(SchedulerType):  # the oldest transformers that we run with has not got it
    del SCHEDULES["greedy"], METRIC_DRIVEN["greedy"]
ON_A_METRIC = tuple(METRIC_DRIVEN)


def arguments(schedule: str) -> dict[str, Any]:
    return {"lr_scheduler_type": schedule, "warmup_steps": WARMUP, **SCHEDULES[schedule]}


def scheduled(schedule: str) -> list[float]:
    """The lr of each update as transformers has it, the peak in place of its warmup."""
    if schedule in METRIC_DRIVEN:
        return [PEAK * scale for scale in METRIC_DRIVEN[schedule]]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    kwargs = SCHEDULES[schedule].get("lr_scheduler_kwargs")
    made: LRScheduler = get_scheduler(schedule, optimizer, WARMUP, STEPS, scheduler_specific_kwargs=kwargs)
    lrs = []
    for _ in range(STEPS):
        lrs.append(float(made.get_last_lr()[0]))
        optimizer.step()
        made.step()
    return [PEAK] * WARMUP + lrs[WARMUP:]


RAMP = [min(1.0, (t + 1) / WARMUP) for t in range(STEPS)]
FLAT: dict[str, Any] = {"lr_scheduler_type": "constant"}


def weights(run: Trainer) -> list[Tensor]:
    return [tensor.clone() for tensor in run.model.state_dict().values()]


def same(mine: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def step_logs(logs: list[dict[str, float]]) -> list[dict[str, float]]:
    return [entry for entry in logs if "loss" in entry]


def plain(logs: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in entry.items() if not k.startswith("adaptive_warmup/")} for entry in step_logs(logs)]


def flat(steps: int, warmup: int) -> list[float]:
    return [PEAK * min(1.0, (t + 1) / warmup) for t in range(steps)]
