"""What comes in from a training loop: checked at once, read off a device only when it is needed."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from adaptive_warmup.quoting import quoted
from adaptive_warmup.signals import NAMES, check_name, check_source

_KNOWN = frozenset(NAMES)


def checked(kl_source: str | None = None, of_step: int | None = None, **signals: Any) -> dict[str, Any]:
    """What `Regulator.observe` takes in of its arguments; with `of_step`, and of a KL its source. Raises as that."""
    if not signals.keys() <= _KNOWN:
        for name in signals:
            check_name(name)
    taken = {
        name: value if type(value) is float else _taken(name, value)  # the usual case first: this runs at every step
        for name, value in signals.items()
        if value is not None
    }
    if kl_source is not None:
        check_source(kl_source)
    if of_step is not None:
        taken["of_step"] = _whole(of_step)
    if "kl" in taken:
        taken["kl_source"] = kl_source or "post_update"
    return taken


def check_step(of_step: int, running: int) -> None:
    """Raise ValueError where a KL is said to be of a step after the running one."""
    if of_step > running:
        raise ValueError(
            f"of_step={of_step} is still to come: the running step is {running}. Note `decision.step` while a step"
            " runs, and give that."
        )


def _whole(of_step: Any) -> int:
    try:
        return operator.index(of_step)
    except TypeError as error:
        raise TypeError(f"of_step={of_step!r} must be a whole number, as `decision.step` is.") from error


def _taken(name: str, value: Any) -> Any:
    """A float now where that costs nothing; a tensor on a device is kept, cut loose from the graph."""
    shape = tuple(getattr(value, "shape", ()))
    if any(n != 1 for n in shape):
        raise ValueError(f"signal {name!r} has shape {shape}: report one number, such as its mean.")
    parts = [part for part in getattr(value, "placements", ()) if not part.is_replicate()]  # of torch's DTensor
    if parts:  # its `item` is this process's own part, another one in each
        raise ValueError(f"signal {name!r} is in parts on several processes, {parts}: report its full_tensor().")
    if hasattr(value, "detach") and value.device.type != "cpu":
        return value.detach().clone()  # a copy, since the caller may go on writing into it
    try:
        if isinstance(value, (str, bytes)):  # float() would read some of them
            raise TypeError("text")
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"signal {name!r} is {quoted(value)}: report a number.") from error


def read(waiting: Mapping[str, Any]) -> dict[str, Any]:
    """With what was kept on a device read."""
    plain = (float, str)  # the usual case first, here too
    return {name: value if type(value) in plain else float(value) for name, value in waiting.items()}
