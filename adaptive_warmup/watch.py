"""A run in the terminal while it goes on: phase, lr, signals, the last decisions and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from adaptive_warmup.history import Run

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 40
_LAST = 5  # changes of phase that are shown
_STYLES = {"warmup": "cyan", "holding": "yellow", "backing_off": "red", "at_ceiling": "magenta", "done": "green"}


def view(run: Run) -> RenderableType:
    """What is shown of a run of one step or more."""
    now = run.steps[-1]
    table = Table.grid(padding=(0, 2))
    table.add_row("lr", f"{now['lr']:.3g}", _spark([math.log(step["lr"]) for step in run.steps if step["lr"] > 0]))
    for name, words in (("task_reward", "task reward"), ("kl", "policy KL"), ("kl_reward", "KL reward")):
        values = [value for value in run.signal(name) if math.isfinite(value)]
        if values:
            shown = [math.log(value) for value in values if value > 0] if name == "kl" else values
            table.add_row(words, f"{values[-1]:.3g}{_against_target(name, values[-1], run)}", _spark(shown))
    changes = [Text(f"{step['step']:6}  {step['phase']:11}  {step['reasons'][0]}") for step in _changes(run)[-_LAST:]]
    alarms = [Text(f"{name}: {message}", style="bold red") for name, message in now.get("alarms", [])]
    title = f"{run.about.get('arm', 'run')}, step {now['step']}"
    phase = Text(_phase(now), style=_STYLES.get(now["phase"], ""))
    return Panel(
        Group(phase, Text(), table, Text(), Text("last decisions", style="bold"), *changes, *alarms), title=title
    )


def _phase(now: dict[str, Any]) -> str:
    words = f"{now['phase']}, next at {now['next']:.3g} of the schedule"
    if "ceiling" in now:
        words += f"; bears {now['ceiling']:.3g}"
    return words + (f"; warmup should end at step {now['ends']}" if "ends" in now else "")


def _against_target(name: str, value: float, run: Run) -> str:
    source = run.steps[-1]["signals"].get("kl_source", "post_update")
    return f" ({value / run.config.target_kl:.2g} x target)" if name == "kl" and source == "post_update" else ""


def _changes(run: Run) -> list[dict[str, Any]]:
    """The steps at which the phase changed, the first one included."""
    before = [None, *(step["phase"] for step in run.steps)]
    return [step for step, phase in zip(run.steps, before, strict=False) if step["phase"] != phase]


def _spark(values: Sequence[float]) -> str:
    """The series as a line of bars, the last value at the right; each bar the mean of its share of the steps."""
    share = max(math.ceil(len(values) / _WIDTH), 1)
    means = [sum(values[i : i + share]) / len(values[i : i + share]) for i in range(0, len(values), share)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    span = high - low or 1.0
    return "".join(_BARS[1 + round((value - low) / span * (len(_BARS) - 2))] for value in means)
