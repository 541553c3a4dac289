"""What a Trainer does not hand to its callbacks: itself, what passes through its methods, and the other processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import distributed, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer, TrainerCallback, TrainingArguments

from adaptive_warmup.regulator import Regulator


def calling_trainer(callback: TrainerCallback) -> Trainer | None:
    """The Trainer that is calling `callback`: callbacks are handed everything but the Trainer itself."""
    frame = inspect.currentframe()
    while frame:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, Trainer) and callback in candidate.callback_handler.callbacks:
            return candidate
        frame = frame.f_back
    return None


def check_place(first: Any) -> None:
    """Raise TypeError if a callback was built around what it should be handed to, or around a part of that."""
    if isinstance(first, (Trainer, TrainingArguments, nn.Module, Optimizer, LRScheduler)):
        given = type(first).__name__
        raise TypeError(
            f"{given}: the Trainer takes the callback, as in Trainer(..., callbacks=[AdaptiveWarmupCallback()])."
        )


def check_alone(kind: type[TrainerCallback], trainer: Trainer) -> None:
    """Raise ValueError if the Trainer has two callbacks of this kind."""
    if sum(isinstance(one, kind) for one in trainer.callback_handler.callbacks) > 1:
        raise ValueError(f"two {kind.__name__}s on one Trainer would both set the lr: remove one of them.")


def tap(undo: ExitStack, trainer: Trainer, method: str, see: Callable[..., Any]) -> None:
    """Shadow a method of this one Trainer by `see(method, *args, **kwargs)`, until `undo.close()`."""
    original, shadow = getattr(trainer, method), vars(trainer).get(method)
    setattr(trainer, method, partial(see, original))
    if shadow is None:
        undo.callback(vars(trainer).pop, method, None)
    else:  # somebody else's, which comes back
        undo.callback(setattr, trainer, method, shadow)


def agree(regulator: Regulator) -> None:
    """All processes go by the first one's decision: at lrs of their own, the copies of the model would drift apart."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        states = [regulator.state_dict()]
        distributed.broadcast_object_list(states)
        if distributed.get_rank():
            regulator.load_state_dict(states[0])
