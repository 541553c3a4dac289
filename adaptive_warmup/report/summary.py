"""How runs ended, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from adaptive_warmup.collapse import SMOOTH, Course, course
from adaptive_warmup.history import Run
from adaptive_warmup.quoting import plural
from adaptive_warmup.report.reading import adapts, ceilings, gaps

_STEADY = 1.25  # a ceiling that varies by less than this, times, is told as one number


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        name: the arm's.
        steps: in the log.
        score: of the final evaluation, or NaN where the run did not come to it.
        area: mean task reward over the steps.
        collapsed: the last scores, or the final one, are below the best mean over 8 steps by more than noise, and below
            half of it; where scores may be negative, below the middle between the best and the lowest.
        last_lr, highest_lr: that the run used.
    """

    name: str
    steps: int
    score: float
    area: float
    collapsed: bool
    last_lr: float
    highest_lr: float

    def row(self) -> tuple[str, ...]:
        """For a table."""
        score, area = ("-" if math.isnan(value) else f"{value:.3f}" for value in (self.score, self.area))
        collapsed = "collapsed" if self.collapsed else "no"
        return self.name, str(self.steps), score, area, collapsed, short(self.last_lr), short(self.highest_lr)


COLUMNS = ("run", "steps", "final score", "area", "collapsed", "last lr", "highest lr")
MEANING = (
    "final score: on evaluation problems after the last step. area: mean task reward over the steps."
    " collapsed: ended below half of its best, and by more than noise (means over 8 steps, or the final score)."
)


def outcome(run: Run, name: str | None = None) -> Outcome:
    """The outcome of a run of one step or more; `name` where its own is not enough to tell it from others."""
    rewards = _rewards(run)
    lrs = [step["lr"] for step in run.steps if math.isfinite(step["lr"])] or [math.nan]
    name = name or str(run.about.get("arm", run.config.law))
    score, collapsed = run.metric("evaluation")[-1], _fall(run) is not None
    return Outcome(name, len(run.steps), score, _mean(rewards), collapsed, lrs[-1], max(lrs))


def in_words(run: Run) -> str:
    """What happened to the warmup, in a sentence or two."""
    held = list(_held(run))
    return "; ".join([*_warmup(run, bool(held)), *held, *_collapse(run), *_alarms(run), *_gaps(run)])


def short(value: float) -> str:
    """Two digits, as people write an lr: 3.9e-7."""
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits}e{int(power)}" if power else digits


def _rewards(run: Run) -> list[float]:
    """Those that were reported."""
    return [reward for reward in run.signal("task_reward") if math.isfinite(reward)]


def _fall(run: Run) -> tuple[str, float, Course] | None:
    """Of a collapse: what fell, where it ended, and the course of the task reward."""
    if (past := course(_rewards(run))) is None:
        return None
    for what, end in (("task reward", past.means[-1]), ("final score", run.metric("evaluation")[-1])):
        if past.fallen(end):
            return what, end, past
    return None


def _warmup(run: Run, held: bool) -> Iterator[str]:
    kind = "nominal" if adapts(run) else "fixed linear warmup of"
    yield f"{kind} {plural(run.config.warmup_steps, 'step')}"
    row, warm = next(((i, step) for i, step in enumerate(run.steps) if step["next"] == 1.0), (0, None))
    last = run.steps[-1]
    if warm is None:
        end = "" if held else f", its last, at {_percent(last['next'])} of the {_whole(run)}"
        yield f"not warm by step {last['step']}{end}"
    elif row == 0 and warm["step"] > run.origin:
        yield f"warm where the log begins, at step {warm['step']}"
    else:  # the next update, counted from 1, runs at the peak; without a warmup the first one did
        yield f"warm after {1 if row == 0 and run.config.warmup_steps == 1 else warm['step'] - run.origin + 2}"


def _held(run: Run) -> Iterator[str]:
    """The ceiling by the run's own KL, where that kept it below the peak at the end."""
    begin = len(run.steps)
    while begin and run.steps[begin - 1].get("ceiling", 1.0) < 1.0:
        begin -= 1
    held = [i for i in range(begin, len(run.steps)) if run.steps[i]["phase"] != "warmup"]
    if not held or len(run.steps) - held[0] < min(SMOOTH, len(run.steps)):
        return
    shares = sorted(step["next"] for step in run.steps[held[0] :])
    least, most = shares[len(shares) // 10], shares[-1 - len(shares) // 10]  # not the way down, nor single steps
    share = f"{_percent(least)[:-2]} to {_percent(most)}" if most > _STEADY * least else _percent(median(shares))
    borne = [lr for lr in ceilings(run)[-SMOOTH:] if not math.isnan(lr)]
    words = f", the ceiling at lr {short(_mean(borne))}" if borne else ""
    yield f"held at {share} of the {_whole(run)} from step {run.steps[held[0]]['step']}{words}"


def _collapse(run: Run) -> Iterator[str]:
    if fall := _fall(run):
        what, end, past = fall
        came = "from" if what == "task reward" else "after task rewards of"
        yield f"collapsed: the {what} ended at {end:.2g}, {came} {past.best:.2g}"


def _alarms(run: Run) -> Iterator[str]:
    rung: dict[str, list[int]] = {}
    for step in run.steps:
        for name, _ in step.get("alarms", []):
            rung.setdefault(name, []).append(step["step"])
    for name, steps in rung.items():
        yield f"{name} at step {steps[0]}" + (f" and {len(steps) - 1} more" if len(steps) > 1 else "")


def _gaps(run: Run) -> Iterator[str]:
    missing = gaps(run)
    if missing:
        shown = ", ".join(f"{first} to {last}" for first, last in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        yield f"no line in the log for steps {shown}{more}"


def _whole(run: Run) -> str:
    """What a factor is a share of."""
    return "peak" if all(step["signals"].get("lr_scale", 1.0) == 1.0 for step in run.steps) else "schedule"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
