"""What a replay comes to: when the run died, which alarms would have rung before, and what the lr would have done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from adaptive_warmup.alarms import is_finite
from adaptive_warmup.collapse import SMOOTH, course
from adaptive_warmup.readers import Past
from adaptive_warmup.replay import MUCH, Moment

_SILENCE = 16  # rows without an alarm after which it is a new one: the longest window of the alarms
_APART = 8  # rows between two cuts of the lr that count as two
_MOST_EVENTS = 1000


class Death(NamedTuple):
    """When the run died, and of what."""

    step: int
    why: str


@dataclass
class Ringing:
    """A time during which an alarm rang, with no silence as long as its window.

    Attributes:
        name, message: the alarm's, as it first rang.
        first, last: steps.
        rows: how often.
        lead: steps from `first` to the run's death, if it was ringing when the run died; else None.
    """

    name: str
    message: str
    first: int
    last: int
    last_row: int
    rows: int = 0
    lead: int | None = None


class Event(NamedTuple):
    """Something that the controller would have done after a step; `certain` until the run would have gone another way.

    `factor` is the controller's from then on.
    """

    step: int
    what: str
    factor: float
    certain: bool


@dataclass
class Verdict:
    """The outcome.

    Attributes:
        death: of the run, None if it lived.
        alarms: in order of their first ring.
        events: in order.
        differs: the first step at which the controller's lr is far from the run's; from there on its decisions are no
            longer what would have happened.
        finished: the step after which the controller was at the peak first; `held`, below it by its ceiling.
        ceiling: the last estimate of what the run bears, as a factor.
        above: rows at which the run's lr was above what it is estimated to bear.
        far_above: the first step at which it was so by more than a factor of 2, and `most`, the largest such factor.
    """

    death: Death | None
    alarms: list[Ringing] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    differs: int | None = None
    finished: int | None = None
    held: int | None = None
    ceiling: float | None = None
    above: int = 0
    far_above: int | None = None
    most: float = 0.0


def judge(past: Past, moments: Iterable[Moment]) -> Verdict:
    """Go through the replay once."""
    verdict = Verdict(death(past))
    ringing: dict[str, Ringing] = {}
    last_cut = -_APART
    for row, moment in enumerate(moments):
        if moment.differs and verdict.differs is None:
            verdict.differs = moment.step
            _event(verdict, moment, _difference(moment))
        _ring(verdict, ringing, row, moment)
        _weigh(verdict, moment)
        if moment.decision.phase == "backing_off":
            if row - last_cut > _APART:
                _event(verdict, moment, moment.decision.reasons[0])
            last_cut = row
    _leads(past, verdict)
    return verdict


def death(past: Past) -> Death | None:
    """The score (mean over 8 rows) fell below half of its best for good, or a signal ended in two NaNs or more."""
    return min((one for one in (_broken(past), _fallen(past)) if one), default=None)


def _ring(verdict: Verdict, ringing: dict[str, Ringing], row: int, moment: Moment) -> None:
    for name, message in moment.decision.alarms:
        now = ringing.get(name)
        if now is None or row - now.last_row > _SILENCE:
            now = ringing[name] = Ringing(name, message, moment.step, moment.step, row)
            verdict.alarms.append(now)
        now.last, now.last_row, now.rows = moment.step, row, now.rows + 1


def _weigh(verdict: Verdict, moment: Moment) -> None:
    """The ceiling, against the controller's factor and the run's lr."""
    decision = moment.decision
    if decision.factor == 1.0 and verdict.finished is None:
        verdict.finished = moment.step
        _event(verdict, moment, "at the peak")
    if decision.phase == "at_ceiling" and verdict.held is None:
        verdict.held = moment.step
        _event(verdict, moment, "held by the ceiling, below the peak")
    verdict.ceiling = moment.bears
    if moment.excess > 1.0:
        verdict.above += 1
        verdict.most = max(verdict.most, moment.excess)
        if moment.excess > MUCH and verdict.far_above is None:
            verdict.far_above = moment.step


def _difference(moment: Moment) -> str:
    times = moment.factor / moment.own
    return f"its lr is {times:.2g} times the run's" if times > 1.0 else f"its lr is 1/{1.0 / times:.2g} of the run's"


def _event(verdict: Verdict, moment: Moment, what: str) -> None:
    if len(verdict.events) < _MOST_EVENTS:
        certain = verdict.differs is None or moment.step <= verdict.differs
        verdict.events.append(Event(moment.step, what, moment.decision.factor, certain))


def _leads(past: Past, verdict: Verdict) -> None:
    if verdict.death is None:
        return
    row = int(np.searchsorted(past.steps, verdict.death.step))
    broken = verdict.death == _broken(past)  # what was not finite before that, came back
    for one in verdict.alarms:
        if one.first <= verdict.death.step and one.last_row >= row - _SILENCE:
            one.lead = 0 if broken and one.name == "non_finite" else verdict.death.step - one.first


def _fallen(past: Past) -> Death | None:
    column = past.columns.get("task_reward")
    if column is None:
        return None
    kept = np.flatnonzero(column.given & np.isfinite(column.values))
    went = course(column.values[kept].tolist())
    if went is None or len(kept) < 2 * SMOOTH or not went.fallen(went.means[-1]):
        return None
    alive = max(at for at, mean in enumerate(went.means) if not went.fallen(mean))
    half = "half of" if went.floor == 0.0 else "half of the way to"
    why = f"the task reward fell below {half} its best, {went.best:.3g}, and did not come back"
    return Death(int(past.steps[kept[alive + SMOOTH]]), why)


def _broken(past: Past) -> Death | None:
    found = []
    for name in ("task_reward", "kl", "loss", "grad_norm"):
        if (column := past.columns.get(name)) is None:
            continue
        rows = np.flatnonzero(column.given)
        sound = [at for at, value in enumerate(column.values[rows]) if is_finite(float(value))]
        first = sound[-1] + 1 if sound else 0
        if first < len(rows) - 1:  # a last one alone might have come back
            value = float(column.values[rows[first]])
            found.append(Death(int(past.steps[rows[first]]), f"{name} was {value} from there to the end"))
    return min(found, default=None)
