"""Our own decision logs. Their signals need no guessing: they are written under their own names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from adaptive_warmup import history
from adaptive_warmup.controller import Config, start
from adaptive_warmup.lines import Notes
from adaptive_warmup.readers.rows import Row

NAME = "a decision log of adaptive-warmup"


def recognises(path: Path, head: list[str]) -> bool:
    """By the name in its first line."""
    try:
        return "adaptive_warmup" in json.loads(head[0])
    except (IndexError, TypeError, json.JSONDecodeError):
        return False


def rows(path: Path, notes: Notes) -> Iterator[Row]:
    """One row for each step."""
    run = history.read(path)
    if run.problem:
        notes.add(run.problem)
    same = sum(step["next"] == decision.factor for step, decision in zip(run.steps, history.replay(run), strict=True))
    notes.add(f"with the settings in the log, {same} of its {len(run.steps)} decisions come out the same")
    for index, step in enumerate(run.steps):
        signals = {f"signals/{name}": value for name, value in step["signals"].items() if name != "kl_source"}
        if "signals/kl" in signals:
            source = step["signals"].get("kl_source", "post_update")
            signals[f"signals/kl:{source}"] = signals.pop("signals/kl")
        yield Row(step["step"], "step", {"signals/lr": step["lr"], **signals}, f"line {index + 2}")


def settings(path: Path) -> tuple[Config, float | None]:
    """The controller's settings, and the lr at factor 1 where the log tells: that of a step at a known factor."""
    run = history.read(path)
    factor = start(run.config).factor
    for step in run.steps:
        fraction = factor * step["signals"].get("lr_scale", 1.0)
        if fraction > 0.0 and step["lr"] > 0.0:
            return run.config, step["lr"] / fraction
        factor = step["next"]
    return run.config, None
