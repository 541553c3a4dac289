"""Signals that live on a device: read at once where that waits for nothing, else a step later.

A Trainer's loss and gradient norm are where its model is. Python reads such a number by waiting until an accelerator
has come to it, and queues nothing new meanwhile. So they are copied to the host while the accelerator goes on, and read
at the end of the next step, when it has work queued behind the copy and is not kept waiting. What has to be known
before an update, whether its gradient is an outlier, the accelerator then decides for itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from adaptive_warmup.regulator import Regulator

_log = logging.getLogger("adaptive_warmup")
Read = Literal["auto", "now", "late"]


def check_read(read: Any) -> None:
    """Raise ValueError if `read` is no way of reading."""
    if read not in get_args(Read):
        raise ValueError(f"read={read!r} is unknown: use 'auto', 'now' or 'late'.")


class Reader:
    """Reads the signals of steps.

    Args:
        read: `now`: all at once; `late`: tensors a step later; `auto`: those on a device other than the CPU.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._copies: dict[str, Tensor] = {}
        self._beside: dict[str, Any] = {}  # source and step of a KL among them
        self._copied: list[Any] = []  # events behind the copies

    def is_late(self, value: Any) -> bool:
        """Whether `value` is read a step later."""
        return isinstance(value, Tensor) and self._is_late_on(value.device)

    def _is_late_on(self, device: torch.device) -> bool:
        return self._read == "late" or (self._read == "auto" and device.type != "cpu")

    def tell(self, device: torch.device, optimizer: Optimizer) -> None:
        """Say so where nothing will be known, or can be done on the device, of a gradient before its update."""
        if self._is_late_on(device) and not _scales_gradients(optimizer):
            name = type(_bare(optimizer)).__name__
            _log.info("no update is cut or skipped for its gradient: %s is not fused; read='now' waits and does", name)

    def take(self, signals: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Those of step number `step` that can be read at once; the others are copied, and come by `arrived`."""
        late = {name: value.detach() for name, value in signals.items() if self.is_late(value)}
        if not late:
            return dict(signals)
        if "kl" in late:
            self._beside = {"kl_source": signals.get("kl_source"), "of_step": step}
        for name, value in late.items():
            self._copies[name] = value.to("cpu", non_blocking=_backend(value.device) is not None, copy=True)
        self._copied += [_mark(device) for device in {value.device for value in late.values()} if _backend(device)]
        return {name: value for name, value in signals.items() if name not in late and name not in self._beside}

    def arrived(self) -> dict[str, Any]:
        """What has been copied since the last call, as floats."""
        for event in self._copied:
            event.synchronize()  # with the copies alone, and they are a step old
        numbers = {name: copy.reshape(()).tolist() for name, copy in self._copies.items()} | self._beside
        self._copies, self._beside, self._copied = {}, {}, []
        return numbers


class Passing:
    """What passes through a Trainer in the course of one step, unread.

    Attributes:
        loss: the sum over its micro-batches so far, each of which is its share of the step's; None until then.
        grad_norm: before clipping; None until then.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A step begins."""
        self.loss: Any = None
        self.grad_norm: Any = None

    def see_loss(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around `training_step`."""
        loss = original(*args, **kwargs)  # detached
        self.loss = loss if self.loss is None else self.loss + loss
        return loss

    def see_grad_norm(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around `_get_grad_norm`."""
        norm = original(*args, **kwargs)
        self.grad_norm = gathered(norm)
        return norm


def gathered(value: Any) -> Any:
    """Of a number that is in parts on several processes (FSDP2's gradient norm) the whole, by one small reduction."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def limit(optimizer: Optimizer, grad_norm: Tensor, regulator: Regulator) -> None:
    """Have the coming update cut on the device if its gradient is an outlier, skipped if that is not finite.

    By the two attributes with which torch's loss scaler asks for the same. Here the gradient is cut, not the lr.
    """
    bounds = regulator.limits
    if bounds is None or not _scales_gradients(optimizer):
        return
    norm, told = grad_norm.float(), _bare(optimizer)
    excess = (norm / bounds.usual).clamp(1.0, 1.0 / regulator.config.floor)
    # What gradients are divided by. Not torch.where: it would copy a 1.0 to the device, and wait for that.
    told.grad_scale = excess.masked_fill(~(norm > bounds.above), 1.0)
    told.found_inf = (~norm.isfinite()).float()


def unlimited(optimizer: Optimizer) -> None:
    """The update is done: the next one is as it was. (The loss scaler takes the two away itself.)"""
    for name in ("grad_scale", "found_inf"):
        vars(_bare(optimizer)).pop(name, None)


def _scales_gradients(optimizer: Optimizer) -> bool:
    """Whether an update can be told on the device to scale the gradients or to do nothing, as the fused ones can."""
    return bool(getattr(_bare(optimizer), "_step_supports_amp_scaling", False))


def _backend(device: torch.device) -> Any:
    """`torch.cuda`, `torch.xpu`, `torch.cpu`, ...; None where it has no events, and a copy has to be waited for."""
    found = getattr(torch, device.type, None)
    return found if hasattr(found, "Event") else None


def _mark(device: torch.device) -> Any:
    """An event behind all that is queued on a device."""
    backend = _backend(device)
    event = backend.Event()
    if hasattr(backend, "current_stream"):
        event.record(backend.current_stream(device))
    else:  # MPS has one
        event.record()
    return event


def _bare(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)  # AcceleratedOptimizer
