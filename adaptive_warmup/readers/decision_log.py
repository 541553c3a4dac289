"""Our own decision logs. Their signals need no guessing: they are written under their own names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adaptive_warmup import controller, history
from adaptive_warmup.controller import Config, State
from adaptive_warmup.lines import Notes
from adaptive_warmup.quoting import plural
from adaptive_warmup.readers.keys import FACTOR
from adaptive_warmup.readers.rows import Row
from adaptive_warmup.signals import NAMES, Signals

NAME = "a decision log of adaptive-warmup"


def recognises(path: Path, head: list[str]) -> bool:
    """By the name in its first line."""
    try:
        return "adaptive_warmup" in json.loads(head[0])
    except (IndexError, TypeError, ValueError):
        return False


def rows(path: Path, notes: Notes) -> Iterator[Row]:
    """One row for each step, and a note on whether its decisions come out the same."""
    state: State | None = None
    config, factor, anew, steps, same, late = Config(1), 0.0, False, 0, 0, 0
    for item in history.items(path, notes):
        if isinstance(item, history.Start):
            config, state, factor, anew = item.config, item.state, item.state.factor, True
        elif state and "next" in item.content:
            step = item.content
            state, decision = controller.step(config, state, Signals(**step["signals"]))
            steps, same, late = steps + 1, same + (decision.factor == step["next"]), late + ("kl_lr" in step["signals"])
            yield Row(step["step"], "step", {f"signals/{FACTOR}": factor, **_values(step)}, item.place, anew)
            factor, anew = step["next"], False
    notes.add(f"with the settings in the log, {same} of its {steps} decisions come out the same")
    if late:
        notes.add(f"{plural(late, 'KL')} of earlier steps, which came late: left out")


def settings(path: Path) -> tuple[Config, float | None]:
    """The controller's settings, and the lr at factor 1 where the log tells: that of a step at a known factor.

    The highest of five, since a step may have run at less: cut for its gradient.
    """
    config, factor, known = Config(1), 0.0, list[float]()
    for item in history.items(path, Notes()):
        if isinstance(item, history.Start):
            config, factor = item.config, item.state.factor
        elif "next" in item.content:
            step = item.content
            fraction = factor * step["signals"].get("lr_scale", 1.0)
            if fraction > 0.0 and 0.0 < (peak := step["lr"] / fraction) < math.inf:
                known.append(peak)
            factor = step["next"]
        if len(known) == 5:
            break
    return config, max(known, default=None)


def _values(step: dict[str, Any]) -> dict[str, object]:
    signals = {f"signals/{name}": value for name, value in step["signals"].items() if name in NAMES}
    kl = signals.pop("signals/kl", None)
    if kl is not None and "kl_lr" not in step["signals"]:  # a row has one lr, and that is not a late KL's
        signals[f"signals/kl:{step['signals'].get('kl_source', 'post_update')}"] = kl
    return {"signals/lr": step["lr"], **signals}
