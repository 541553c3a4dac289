"""The user's own schedule, and the warmup that it may have built in."""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import Any

from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def built_in_warmup(schedule: LRScheduler | None) -> int:
    """Warmup steps in a schedule of transformers' (`get_cosine_schedule_with_warmup` and its kin); 0 elsewhere.

    Those are `LambdaLR`s over a partial, whose keywords tell.
    """
    if not isinstance(schedule, LambdaLR):
        return 0
    keywords = [fn.keywords for fn in schedule.lr_lambdas if isinstance(fn, partial)]
    return max([int(words.get("num_warmup_steps") or 0) for words in keywords], default=0)


def scheduled_lrs(schedule: LRScheduler) -> list[float]:
    """The lrs of the schedule as if it had no warmup: its peak while its built-in warmup lasts.

    So our warmup takes the place of the schedule's own instead of doubling up with it, and what comes after, decay
    included, stays as the user set it, at the same steps. The param groups must hold what the schedule wrote there.
    """
    warmup = built_in_warmup(schedule)
    if warmup and schedule.last_epoch < warmup:
        return [float(lr) for lr in schedule.base_lrs]
    return [float(group["lr"]) for group in schedule.optimizer.param_groups]


def wants_a_metric(schedule: LRScheduler) -> bool:
    """Whether the schedule steps on a metric (ReduceLROnPlateau, GreedyLR), and so not once for each update."""
    return "metrics" in signature(schedule.step).parameters
