"""The report as text, without colour: for a terminal far away, a pipe, a mail."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from statistics import median

from adaptive_warmup.history import Run
from adaptive_warmup.report import reading
from adaptive_warmup.report.panels import Line, Panel, Role, Story, story
from adaptive_warmup.report.summary import COLUMNS, in_words, outcome, short

_ROWS = {"lr": 11, "kl": 9, "task_reward": 7}  # the panels that are drawn, and how high
_NARROWEST = 76  # what the table and the key of the phases take
_MARGIN = 9  # columns for the axis
_MOST_EVENTS = 10  # listed for a run
_GUIDES: dict[Role, str] = {"nominal": ".", "ceiling": "^", "bound": "-"}
_PHASES = {"warmup": "w", "at_ceiling": "c", "done": "d", "holding": "h", "backing_off": "b"}


def text(runs: Sequence[Run], width: int = 80) -> str:
    """The report on runs of one step or more, in lines of `width` characters or less, or of 76."""
    told, width = story(runs), max(width, _NARROWEST)
    letters = [chr(ord("A") + i % 26) for i in range(len(runs))] if len(runs) > 1 else ["o"]
    spread = _Spread(told, width - _MARGIN)
    parts: list[Iterable[str]] = [textwrap.wrap(reading.in_common(runs), width)] if len(runs[0].about) else []
    parts += [_words(runs, told, letters, width)]
    parts += [_table(runs, told, letters)] if len(runs) > 1 else []
    for panel in told.panels:
        if panel.key in _ROWS:
            parts.append(_chart(panel, letters, spread))
            parts += [_strips(runs, told, letters, spread)] if panel.key == "lr" else []
    parts += [_events(run, name, width) for run, name in zip(runs, told.names, strict=True)]
    return "\n\n".join("\n".join(line.rstrip() for line in part) for part in parts) + "\n"


class _Spread:
    """Which column a step falls into."""

    def __init__(self, told: Story, columns: int) -> None:
        bounds = [bound for spans in told.spans for span in spans for bound in (span.start, span.end)]
        self.first, self.end = min(bounds), max(bounds)
        steps = self.end - self.first
        self.columns = columns // steps * steps if steps <= columns else columns  # every step as wide as the others

    def column(self, step: float) -> int:
        return min(int((step - self.first) / (self.end - self.first) * self.columns), self.columns - 1)


def _words(runs: Sequence[Run], told: Story, letters: Sequence[str], width: int) -> Iterator[str]:
    for run, name, letter in zip(runs, told.names, letters, strict=True):
        yield from textwrap.wrap(f"{letter}  {name}: {in_words(run)}.", width, subsequent_indent="   ")


def _table(runs: Sequence[Run], told: Story, letters: Sequence[str]) -> Iterator[str]:
    rows = [COLUMNS] + [(letter, *outcome(run).row()[1:]) for run, letter in zip(runs, letters, strict=True)]
    wide = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    for row in rows:
        yield "  ".join(cell.rjust(wide[i]) if i else cell.ljust(wide[i]) for i, cell in enumerate(row))


def _chart(panel: Panel, letters: Sequence[str], spread: _Spread) -> Iterator[str]:
    height = _ROWS[panel.key]
    low, high = panel.window or _window(panel)
    cells = [[" "] * spread.columns for _ in range(height)]
    for line in sorted(panel.lines, key=lambda line: line.role == "value"):  # over what guides it
        for column, value in _medians(line, spread):
            share = (_scaled(value, panel) - _scaled(low, panel)) / (_scaled(high, panel) - _scaled(low, panel))
            if 0.0 <= share <= 1.0:
                cells[round((1.0 - share) * (height - 1))][column] = _GUIDES.get(line.role, letters[line.run])
    words = {".": "nominal", "^": "ceiling", "-": panel.bound}
    used = {cell for row in cells for cell in row}
    yield f"{panel.title}, {panel.unit}" + "".join(f"   {sign} {said}" for sign, said in words.items() if sign in used)
    for row, content in enumerate(cells):
        share = 1.0 - row / (height - 1)
        at = _scaled(low, panel) + share * (_scaled(high, panel) - _scaled(low, panel))
        label = "" if row % 2 else short(math.exp(at)) if panel.log else f"{at:.2g}"
        yield f"{label:>{_MARGIN - 2}} |{''.join(content)}"
    yield f"{'step':>{_MARGIN - 2}} +{_axis(spread)}"


def _window(panel: Panel) -> tuple[float, float]:
    values = [value for line in panel.lines for value in line.values if not math.isnan(value)]
    low, high = min(values), max(values)
    if panel.log and high == low:
        return low / 1.5, high * 1.5
    return (low, high) if high > low else (low - 0.5 * abs(low) - 1e-9, high + 0.5 * abs(high) + 1e-9)


def _scaled(value: float, panel: Panel) -> float:
    return math.log(value) if panel.log else value


def _medians(line: Line, spread: _Spread) -> Iterator[tuple[int, float]]:
    """For each column the median of what falls into it."""
    found: dict[int, list[float]] = {}
    for step, value in zip(line.steps, line.values, strict=True):
        if not math.isnan(step):
            found.setdefault(spread.column(step), []).append(value)
    for column, values in found.items():
        yield column, median(values)


def _axis(spread: _Spread) -> str:
    """The first step, one in the middle and the last, under their columns."""
    middle = (spread.first + spread.end) // 2
    line = f"{spread.first} "
    line = f"{line.ljust(spread.column(middle), '-')} {middle} " if middle > spread.first else line
    return line + f" {spread.end - 1}".rjust(spread.columns - len(line), "-")


def _strips(runs: Sequence[Run], told: Story, letters: Sequence[str], spread: _Spread) -> Iterator[str]:
    """Per run the phases, and below them where an alarm was on."""
    seen = {span.phase for spans in told.spans for span in spans}
    key = ["Phases", *(f"{sign} {phase}" for phase, sign in _PHASES.items() if phase in seen)]
    rung = any(step.get("alarms") for run in runs for step in run.steps)
    yield "  ".join([*key, "! alarm"] if rung else key)
    for run, spans, letter in zip(runs, told.spans, letters, strict=True):
        line, alarm = [" "] * spread.columns, [" "] * spread.columns
        for start, end, phase in spans:
            for column in range(spread.column(start), max(spread.column(end - 0.5), spread.column(start)) + 1):
                line[column] = _PHASES[phase]
        for step in run.steps:
            if step.get("alarms"):
                for column in range(spread.column(step["step"]), spread.column(step["step"] + 0.5) + 1):
                    alarm[column] = "!"
        yield f"{letter:>{_MARGIN - 2}}  {''.join(line)}"
        if "!" in alarm:
            yield " " * _MARGIN + "".join(alarm)


def _events(run: Run, name: str, width: int) -> Iterator[str]:
    """Every onset of an alarm, and the first and last changes of phase."""
    found = reading.events(run)
    changes = [event for event in found if not event.alarms]
    alarms = [event for event in found if event.alarms][:_MOST_EVENTS]
    room = max(_MOST_EVENTS - len(alarms), 0)
    if len(changes) > room:
        changes = changes[: room // 3] + changes[len(changes) - (room - room // 3) :]
    shown = sorted([*alarms, *changes])
    left = f", {len(shown)} of {len(found)}" if len(shown) < len(found) else ""
    head = f"{name}: decisions that changed the phase, and alarms{left}" if found else f"{name}: no change of phase"
    yield from textwrap.wrap(head, width)
    for event in shown:
        said = [f"{event.step:6}  {event.phase:11}  {event.reasons[0] if event.reasons else ''}"]
        said += [f"{'':6}  ! {alarm}: {message}" for alarm, message in event.alarms]
        for line in said:
            yield from textwrap.wrap(line, width, subsequent_indent=" " * 10, drop_whitespace=False)
