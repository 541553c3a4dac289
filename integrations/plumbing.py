"""What a Trainer does not hand to its callbacks: itself, what passes through its methods, and the other processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import distributed
from transformers import Trainer, TrainerCallback

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
