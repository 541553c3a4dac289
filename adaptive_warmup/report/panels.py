"""What the report draws, as data: panels with their lines and marks. The page, the picture and the terminal draw this.

Every line says in its role what it is, and every renderer gives a role the same look: a value is solid, the nominal lr
dash-dotted, a ceiling dotted, a target or an alarm's bound dashed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adaptive_warmup.alarms import Watch, drop_bound, is_finite, watch
from adaptive_warmup.feedforward import outlying
from adaptive_warmup.history import Run
from adaptive_warmup.report import reading
from adaptive_warmup.report.reading import Span, adapts
from adaptive_warmup.signals import KLSource, Signals, kl_on_target

Role = Literal["value", "nominal", "ceiling", "bound"]
_MOST_MARKS = 100  # of a run on a panel: where the phase changes more often, only alarms are marked
_KL_WORDS: dict[KLSource, str] = {
    "post_update": "k3, the policy before the step against after it",
    "probe": "exact, the policy before the step against after it",
    "training_probe": "exact, the model before the step against after it",
    "in_loop": "approx_kl, read in the loop before each update: several times too low",
    "clip_fraction": "no KL: the share of tokens clipped",
}


@dataclass(frozen=True)
class Line:
    """A line of a run's. Where it is broken, step and value are NaN.

    Attributes:
        run: index of the run.
        role: what it is.
        steps, values: its points.
        rows: the index in the run's steps of each point, -1 where it is broken.
    """

    run: int
    role: Role
    steps: list[float]
    values: list[float]
    rows: list[int]


@dataclass(frozen=True)
class Mark:
    """An event on a line: `rise` or `fall` where the phase changed, `alarm` where one set in."""

    run: int
    step: int
    value: float
    kind: Literal["rise", "fall", "alarm"]


@dataclass(frozen=True)
class Panel:
    """One picture over the steps.

    Attributes:
        key: `lr`, or the signal's name.
        title, unit: for its heading and its axis.
        caption: what it shows and what to look for, a sentence.
        log: whether its axis is logarithmic.
        bound: what its `bound` lines are.
        window: the values (least, greatest) that it shows; None: all.
    """

    key: str
    title: str
    unit: str
    caption: str
    log: bool
    lines: list[Line]
    marks: list[Mark]
    bound: str = ""
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Story:
    """All that is drawn of some runs.

    Attributes:
        names: of the runs.
        panels: those that some run has data for, the lr first.
        spans: per run its phases.
        notes: per run and step, what was decided and why, line by line.
    """

    names: list[str]
    panels: list[Panel]
    spans: list[list[Span]]
    notes: list[list[list[str]]]


def story(runs: Sequence[Run]) -> Story:
    """Describe the drawing of runs of one step or more each."""
    panels = [_lr(runs), _kl(runs), _task(runs), _kl_reward(runs), _grad_norm(runs)]
    shown = [panel for panel in panels if any(line.role == "value" and line.steps for line in panel.lines)]
    notes = [[note(run, row) for row in range(len(run.steps))] for run in runs]
    return Story(reading.names(runs), shown, [reading.spans(run) for run in runs], notes)


def note(run: Run, row: int) -> list[str]:
    """What was decided at a step, why, and what was wrong."""
    step = run.steps[row]
    alarms = [f"{name}: {message}" for name, message in step.get("alarms", [])]
    return [f"{step['phase']}, next at {step['next']:.3g} of the schedule", *step["reasons"], *alarms]


def _lr(runs: Sequence[Run]) -> Panel:
    lines = [_line(i, run, "value", [step["lr"] for step in run.steps], log=True) for i, run in enumerate(runs)]
    for i, run in _adaptive(runs):
        lines.append(_line(i, run, "nominal", reading.nominal(run), log=True))
        lines.append(_line(i, run, "ceiling", reading.ceilings(run), log=True))
    marks = [mark for i, run in enumerate(runs) for mark in _events(i, run)]
    within = [value for line in lines if line.role != "ceiling" for value in line.values if not math.isnan(value)]
    window = (min(within) / 1.5, max(within) * 1.5) if within else None
    caption = _caption("That each step used.", "Dash-dotted: the nominal warmup; dotted: the ceiling, the lr whose KL"
                       " is estimated to meet the target.", lines)  # fmt: skip
    return Panel("lr", "Learning rate", "lr", caption, True, lines, marks, window=window)


def _kl(runs: Sequence[Run]) -> Panel:
    lines = [_line(i, run, "value", run.signal("kl"), log=True) for i, run in enumerate(runs)]
    targets = [_line(i, run, "bound", _targets(run), log=True) for i, run in _adaptive(runs)]
    on_target = [value for line in targets for value in line.values if not math.isnan(value)]
    seen = [value for line in lines for value in line.values if not math.isnan(value)]
    window = None
    if on_target and seen:  # a dead policy's KL falls for ever and tells nothing
        low = max(min(seen) / 1.5, min(on_target) / 1000)
        window = (min(low, min(on_target) / 3), max(*seen, *on_target) * 1.5)
    sources = dict.fromkeys(_source(step["signals"]) for run in runs for step in run.steps if "kl" in step["signals"])
    how = "; ".join(dict.fromkeys(_KL_WORDS[source.partition(":")[0]] for source in sources))
    unit = "share of tokens" if list(sources) == ["clip_fraction"] else "nats per token"
    caption = _caption(f"{how[:1].upper()}{how[1:]}.", "Dashed: the target, on the same scale.", targets)
    return Panel("kl", "Policy KL", unit, caption, True, lines + targets, [], "target", window)


def _task(runs: Sequence[Run]) -> Panel:
    signal = "task_reward", "Task reward", "the task's units"
    what, guide = "Mean score of the step's rollout, without the KL.", "Dashed: a smoothed level below is a score drop."
    return _signal(runs, signal, what, guide, bound="drop below", alarm="score_drop")


def _kl_reward(runs: Sequence[Run]) -> Panel:
    signal = "kl_reward", "KL reward", "reward per sequence"
    what = "Mean over sequences, signed. Above zero the KL pays the policy: it is being gamed."
    return _signal(runs, signal, what, "Dashed: zero.", bound="zero", alarm="kl_gaming")


def _grad_norm(runs: Sequence[Run]) -> Panel:
    signal = "grad_norm", "Gradient norm", "L2 norm"
    guide = "Dashed: a gradient above it is an outlier, and its update is cut."
    return _signal(runs, signal, "Before clipping.", guide, bound="outlier above", log=True)


def _signal(
    runs: Sequence[Run],
    signal: tuple[str, str, str],
    what: str,
    guide: str,
    *,
    bound: str,
    alarm: str = "",
    log: bool = False,
) -> Panel:
    key, title, unit = signal
    lines = [_line(i, run, "value", run.signal(key), log) for i, run in enumerate(runs)]
    bounds = [_line(i, run, "bound", _bounds(run, key), log) for i, run in _adaptive(runs)]
    marks = [mark for i, run in enumerate(runs) for mark in _events(i, run, key, alarm)]
    return Panel(key, title, unit, _caption(what, guide, bounds), log, lines + bounds, marks, bound)


def _caption(what: str, guide: str, lines: list[Line]) -> str:
    """`guide` explains lines other than the runs' own, where there are such."""
    return f"{what} {guide}" if any(line.role != "value" and line.steps for line in lines) else what


def _adaptive(runs: Sequence[Run]) -> list[tuple[int, Run]]:
    """Only these heed a ceiling, a target or a bound."""
    return [(i, run) for i, run in enumerate(runs) if adapts(run)]


def _targets(run: Run) -> list[float]:
    return [_target(run, step, _source(step["signals"])) for step in run.steps]


def _target(run: Run, step: dict[str, Any], source: KLSource) -> float:
    lr_scale = reading.lr_scale(step)
    number = max(step["step"] - run.origin, 0)  # a damaged log may count from below
    return kl_on_target(run.config.target_at(number, source, lr_scale), source, lr_scale)


def _source(signals: dict[str, KLSource]) -> KLSource:
    return signals.get("kl_source", "post_update")


def _bounds(run: Run, key: str) -> list[float]:
    """Per step the value of the signal past which the controller acts, as it stood before the step."""
    if key == "kl_reward":
        return [0.0] * len(run.steps)
    found, memory = [], Watch()
    for step in run.steps:
        found.append(drop_bound(memory.reward) if key == "task_reward" else outlying(memory.grad_norm))
        memory, _ = watch(memory, Signals(**step["signals"]))
    return found


def _line(run: int, of: Run, role: Role, values: Iterable[float], log: bool) -> Line:
    """Without the values that cannot be drawn; broken where more than two are missing in a row."""
    points = [(step["step"], value, row) for row, (step, value) in enumerate(zip(of.steps, values, strict=True))
              if is_finite(value) and (value > 0.0 or not log)]  # fmt: skip
    stride = reading.usual_stride([step for step, _, _ in points])
    line = Line(run, role, [], [], [])
    for before, point in zip([None, *points], points, strict=False):
        if before and point[0] - before[0] > 3 * stride:
            _append(line, math.nan, math.nan, -1)
        _append(line, *point)
    return line


def _append(line: Line, step: float, value: float, row: int) -> None:
    line.steps.append(step)
    line.values.append(value)
    line.rows.append(row)


def _events(i: int, run: Run, key: str = "lr", alarm: str | None = None) -> list[Mark]:
    """All events on the lr; on a signal, where its own alarm set in."""
    found, events = [], reading.events(run)
    if len(events) > _MOST_MARKS:
        events = [event for event in events if event.alarms]
    values = [step["lr"] for step in run.steps] if key == "lr" else run.signal(key)
    for event in events:
        value = values[event.row]
        if is_finite(value) and (alarm is None or alarm in [name for name, _ in event.alarms]):
            kind: Literal["rise", "fall", "alarm"] = "fall" if event.phase == "backing_off" else "rise"
            found.append(Mark(i, event.step, value, "alarm" if event.alarms else kind))
    return found
