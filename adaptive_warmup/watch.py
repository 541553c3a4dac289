"""A run in the terminal while it goes on: phase, lr, signals with their bands, the last decisions and why, alarms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from adaptive_warmup.history import Run
from adaptive_warmup.report import panels, reading
from adaptive_warmup.report.summary import short

_BARS = " ▁▂▃▄▅▆▇█"
_PLAIN_BARS = " .,:-=+*#"
_SHOWN = 1000  # steps that are looked at: what is drawn anew with every step may not grow with the run
_LAST = 5  # changes of phase that are shown
_LEAST_BARS, _MOST_BARS = 8, 40
_STYLES = {"warmup": "cyan", "holding": "yellow", "backing_off": "red", "at_ceiling": "magenta", "done": "green"}


def view(run: Run, width: int = 80, plain: bool = False) -> RenderableType:
    """What is shown of a run of one step or more, in `width` columns; `plain` for a terminal that has ASCII only."""
    now = run.steps[-1]
    recent = replace(run, steps=run.steps[-_SHOWN:])
    words = Text(_phase(run), style=_STYLES.get(now["phase"], ""))
    alarms = [Text(f"{name} since step {_since(run, name)}: {message}", style="bold red")
              for name, message in now.get("alarms", [])]  # fmt: skip
    changes = Table.grid(padding=(0, 2))
    for event in reading.events(recent)[-_LAST:]:
        changes.add_row(
            str(event.step), event.phase, "; ".join([*event.reasons[:1], *(name for name, _ in event.alarms)])
        )
    parts: list[RenderableType] = [
        words,
        *(Text(reason) for reason in now["reasons"]),
        *alarms,
        Text(),
        _signals(recent, width, _PLAIN_BARS if plain else _BARS),
    ]
    parts += [Text("\nlast changes", style="bold"), changes] if changes.row_count else []
    return Panel(Group(*parts), title=f"{reading.names([run])[0]}, step {now['step']}")


def _phase(run: Run) -> str:
    now = run.steps[-1]
    words = f"{now['phase']}: {reading.PHASES[now['phase']]}; next at {now['next']:.3g} of the schedule; "
    if "ends" in now:
        return f"{words}the warmup should end at step {now['ends']}"
    warm = next((step["step"] + 1 for step in run.steps if step["next"] == 1.0), None)
    return words + ("no end of the warmup in sight" if warm is None else f"the warmup ended at step {warm}")


def _since(run: Run, alarm: str) -> int:
    """The step at which the alarm that is on now set in."""
    first = run.steps[-1]["step"]
    for step in reversed(run.steps):
        if alarm not in [name for name, _ in step.get("alarms", [])]:
            break
        first = step["step"]
    return int(first)


def _signals(run: Run, width: int, bars: str) -> Table:
    """A row for each: its last value, what bounds it, and its course."""
    drawn = panels.story([run]).panels
    rows = [(panel.title, *_now(run, panel)) for panel in drawn]
    taken = sum(max((len(row[i]) for row in rows), default=0) + 2 for i in range(3))
    room = min(width - 4 - taken, _MOST_BARS)  # 4: the frame
    table = Table.grid(padding=(0, 2))
    for (title, value, band), panel in zip(rows, drawn, strict=True):
        values = [value for value in panel.lines[0].values if not math.isnan(value)]
        course = _spark([math.log(value) for value in values] if panel.log else values, room, bars)
        table.add_row(title, value, band, *([Text(course, no_wrap=True)] if room >= _LEAST_BARS else []))
    return table


def _now(run: Run, panel: panels.Panel) -> tuple[str, str]:
    """The last value that was reported, be it drawable or not, and the last of each line that bounds it."""
    words = {"nominal": "nominal", "ceiling": "ceiling", "bound": panel.bound}
    told = [step if panel.key == "lr" else step["signals"] for step in run.steps]
    value = next(line[panel.key] for line in reversed(told) if panel.key in line)
    digits = short if panel.key == "lr" else "{:.3g}".format
    bands = [f"{words[line.role]} {digits(line.values[-1])}" for line in panel.lines[1:] if line.values]
    return digits(value), ", ".join(bands)


def _spark(values: Sequence[float], width: int, bars: str) -> str:
    """The series as a line of bars, the last value at the right; each bar the mean of its share of the steps."""
    share = max(math.ceil(len(values) / max(width, 1)), 1)
    means = [sum(values[i : i + share]) / len(values[i : i + share]) for i in range(0, len(values), share)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    span = high - low or 1.0
    return "".join(bars[1 + round((value - low) / span * (len(bars) - 2))] for value in means)
