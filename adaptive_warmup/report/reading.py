"""What can be read off a decision log beyond its lines: lrs, phases, events. A log may have gaps, or begin late."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from adaptive_warmup.history import Run

PHASES = {
    "warmup": "rising",
    "at_ceiling": "held below the peak by what the run bears",
    "done": "at the peak",
    "holding": "an alarm forbids rising",
    "backing_off": "falling",
}  # with what they mean, from the usual to the serious


class Event(NamedTuple):
    """A step at which the phase changed or an alarm set in.

    Attributes:
        row: its index in `run.steps`.
        step: its number.
        phase: from then on.
        reasons: of the decision.
        alarms: (name, message) of those that set in.
    """

    row: int
    step: int
    phase: str
    reasons: Sequence[str]
    alarms: list[tuple[str, str]]


class Span(NamedTuple):
    """Steps `start` up to, not including, `end`, of one phase."""

    start: int
    end: int
    phase: str


def adapts(run: Run) -> bool:
    """Whether the run's lr followed its signals."""
    return run.config.law != "linear"


def names(runs: Sequence[Run]) -> list[str]:
    """One for each run: its arm or law and, where several share one, what else they tell of themselves."""
    found = [str(run.about.get("arm", run.config.law)) for run in runs]
    for key in dict.fromkeys(key for run in runs for key in run.about if key != "arm"):
        twice = [found.count(name) > 1 for name in found]
        if any(twice) and len({str(run.about.get(key)) for run in runs}) > 1:
            found = [f"{name}, {key} {run.about.get(key)}" if same else name
                     for name, run, same in zip(found, runs, twice, strict=True)]  # fmt: skip
    return [f"{name} ({found[: i + 1].count(name)})" if found.count(name) > 1 else name for i, name in enumerate(found)]


def in_common(runs: Sequence[Run]) -> str:
    """What all runs tell of themselves alike."""
    first = runs[0].about.items()
    same = [(key, value) for key, value in first if all(run.about.get(key) == value for run in runs)]
    return ", ".join(f"{key} {value}" for key, value in same if key != "arm")


def lr_scale(step: dict[str, Any]) -> float:
    """Of the user's own schedule at the step."""
    return float(step["signals"].get("lr_scale", 1.0))


def peaks(run: Run) -> list[float]:
    """Per step the lr that factor 1 would have meant at the peak of the schedule; NaN where the log does not tell.

    A step after a gap, whose factor is unknown, has the peak of those around it. The median of five drops single steps
    that ran at another lr (cut for their gradient, or the first after a resume).
    """
    known = [_peak(step) for step in run.steps]
    found: list[float] = []
    for i in range(len(known)):
        near = [value for value in known[max(i - 2, 0) : i + 3] if not math.isnan(value)]
        found.append(median(near) if near else found[-1] if found else math.nan)
    first = next((value for value in found if not math.isnan(value)), math.nan)
    return [first if math.isnan(value) else value for value in found]


def _peak(step: dict[str, Any]) -> float:
    share = step.get("factor", 0.0) * lr_scale(step)
    return float(step["lr"] / share) if 0.0 < share < math.inf and step["lr"] > 0.0 else math.nan


def nominal(run: Run) -> list[float]:
    """Per step the lr of the fixed warmup under the same schedule."""
    ramp = [min((step["step"] - run.origin + 1) / run.config.warmup_steps, 1.0) for step in run.steps]
    return [peak * factor * lr_scale(step) for peak, factor, step in zip(peaks(run), ramp, run.steps, strict=True)]


def ceilings(run: Run) -> list[float]:
    """Per step the lr whose KL is estimated to meet the target there; NaN where no KL has said."""
    ceilings = [step.get("ceiling", math.nan) for step in run.steps]
    return [peak * factor * lr_scale(step) for peak, factor, step in zip(peaks(run), ceilings, run.steps, strict=True)]


def events(run: Run) -> list[Event]:
    """The steps at which the phase changed or an alarm set in. Every run begins in warmup."""
    found: list[Event] = []
    begun = bool(run.steps) and run.steps[0]["step"] > run.origin
    phase, rung = run.steps[0]["phase"] if begun else "warmup", set[str]()
    for row, step in enumerate(run.steps):
        alarms = [(name, message) for name, message in step.get("alarms", [])]
        new = [alarm for alarm in alarms if alarm[0] not in rung]
        if new or step["phase"] != phase:
            found.append(Event(row, step["step"], step["phase"], step["reasons"], new))
        phase, rung = step["phase"], {name for name, _ in alarms}
    return found


def spans(run: Run) -> list[Span]:
    """The phases in order; a gap in the log is a gap here."""
    found: list[Span] = []
    stride = usual_stride([step["step"] for step in run.steps])
    for step in run.steps:
        number, phase, end = step["step"], step["phase"], step["step"] + stride
        if found and found[-1].phase == phase and number <= found[-1].end + stride:
            found[-1] = found[-1]._replace(end=end)
        else:
            found.append(Span(number, end, phase))
    cut = [span._replace(end=min(span.end, after.start)) for span, after in itertools.pairwise(found)]
    return cut + found[-1:]


def usual_stride(steps: Sequence[int]) -> int:
    """From one step of a log to the next."""
    apart = [after - before for before, after in itertools.pairwise(steps)]
    return max(round(median(apart)), 1) if apart else 1


def gaps(run: Run) -> list[tuple[int, int]]:
    """The steps (first, last) that the log has no line for, where it usually has one; the start counts too."""
    steps = [step["step"] for step in run.steps]
    stride = usual_stride(steps)
    pairs = zip([run.origin - stride, *steps], steps, strict=False)
    return [(before + stride, after - stride) for before, after in pairs if after - before > 2 * stride]
