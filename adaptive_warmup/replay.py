"""What the controller would have done on a run of the past.

A past run tells what happened at the lrs that it used, and nothing of other lrs but by the law KL ~ lr^2. So:

- The controller is fed the lr that the run *really* used. It believes that a step ran at factor * lr_scale of the peak,
  so lr_scale is set to used / (peak * factor). Its estimate of the run's gain, and so its ceiling, then rests on what
  happened, at every step, also where its own lr would have been another. The KL of a step whose lr is unknown is left
  out, and so is one of 0, which many logs round to, but where a run ends with it.
- The alarms read the run as it was, and do not depend on the lr: that they would have rung is certain.
- The decisions are what would have happened only as long as the controller's lr stays near the run's. From the first
  step at which they are more than a factor of 2 apart (4 in KL) the run would have gone another way.

The schedule on top of the warmup is the run's own: once the run has come to its peak, used / peak is the schedule, and
the controller's lr is that times its factor, as it would have been live.

One row of the log is one decision. Where the log has every tenth step, that is a controller that decides every tenth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptive_warmup import controller
from adaptive_warmup.alarms import is_finite
from adaptive_warmup.controller import Config, Decision, State
from adaptive_warmup.quoting import plural
from adaptive_warmup.readers import FACTOR, SB3, Column, Past
from adaptive_warmup.signals import NAMES, Signals

MUCH = 2.0  # times, between two lrs: a factor of 4 in KL
_ROUNDING = 1.01  # 2 / W against 1 / W, the second step of two nominal warmups, is no difference
_PEAK = 0.999  # so much of the peak counts as the peak
_FLAT = 1e-15  # of the peak a step: an lr that rises by less does not rise
_RATIO = 0.1  # of the run is the nominal warmup where nothing says better


@dataclass(frozen=True)
class Rates:
    """The lrs of a run.

    Attributes:
        peak: the lr at factor 1; None where no lr is known.
        used: per row the lr that the run used, as a share of the peak; NaN where unknown.
        warmup_steps: of the run's own linear warmup, in its steps; None where the lr does not begin by rising.
        unfinished: whether the lr was still rising when the log ends, so that the peak may be higher.
        factor: per row that of the run's warmup, where the log tells: a decision log does.
    """

    peak: float | None
    used: NDArray[np.float64]
    warmup_steps: int | None = None
    unfinished: bool = False
    factor: NDArray[np.float64] | None = None

    @property
    def own(self) -> NDArray[np.float64]:
        """Per row the run's own warmup factor; where nothing tells, the share of the peak until it is there, then 1."""
        if self.factor is not None:
            return self.factor
        top = np.flatnonzero(self.used >= _PEAK)
        after = np.arange(len(self.used)) >= (top[0] if len(top) else len(self.used))
        return np.where(after & ~np.isnan(self.used), 1.0, self.used)


@dataclass(frozen=True)
class Setup:
    """What the replay goes by: the controller's settings, counted in rows; the run's lrs; and what was assumed."""

    config: Config
    rates: Rates
    warmup_steps: int
    assumed: tuple[str, ...]


class Moment(NamedTuple):
    """A row of the log as the controller saw it.

    Attributes:
        step: its number in the log.
        signals: what was fed in.
        factor: the controller's for this step.
        used: the lr that the run used, as a share of the peak; NaN where unknown.
        own: the run's own warmup factor.
        decision: what the controller then decided.
        bears: the factor that the run is estimated to bear at the whole `target_kl`; None where no KL has said.
    """

    step: int
    signals: Signals
    factor: float
    used: float
    own: float
    decision: Decision
    bears: float | None

    @property
    def differs(self) -> bool:
        """Whether the controller's lr is so far from the run's that the run would go another way."""
        return self.own > 0.0 and abs(math.log(self.factor / self.own)) > math.log(MUCH * _ROUNDING)

    @property
    def excess(self) -> float:
        """The run's lr as a multiple of what it is estimated to bear; NaN where no KL has said."""
        return self.own / self.bears if self.bears else math.nan


def setup(
    past: Past, base: Config | None, lr: float | None, warmup_steps: int | None, target_kl: float | None
) -> Setup:
    """Find the run's lrs and the controller's settings; what is given goes before what is found.

    Args:
        past: the run.
        base: settings to start from, those of a decision log; its warmup counts rows.
        lr: the peak of the run's schedule; else the highest in the log.
        warmup_steps: nominal warmup in the run's steps; else the run's own, else a tenth of the run. Where the log has
            no lr, the run is taken to have warmed up linearly over it.
        target_kl: of the controller.

    Raises:
        ValueError: a setting out of its range, or an lr below that in the log.
    """
    rates = _rates(past, lr, warmup_steps)
    adapted = FACTOR in past.columns and not base  # a host's log of a run of ours
    if base:  # a warmup that adapted has no slope to be seen, and its lr is no schedule's
        own = base.warmup_steps * past.every if base.law == "linear" else None
        rates = replace(rates, warmup_steps=own, factor=past.columns[FACTOR].values)
    span = int(past.steps[-1] - past.steps[0]) + past.every
    found = base.warmup_steps * past.every if base else rates.warmup_steps
    nominal = warmup_steps or found or max(round(_RATIO * span), 1)
    rows = max(round(nominal / past.every), 1)
    base = base or Config(warmup_steps=rows)
    shortest = min(base.min_warmup_steps, rows) if base.min_warmup_steps else None
    config = replace(base, warmup_steps=rows, min_warmup_steps=shortest, law="feedback")
    if target_kl is not None:
        config = replace(config, target_kl=target_kl)
    return Setup(config, rates, nominal, tuple(_assumed(past, rates, warmup_steps or found, nominal, adapted)))


def replay(past: Past, given: Setup) -> Iterator[Moment]:
    """The controller's decisions, row by row, in constant memory."""
    state, kls = controller.start(given.config), past.columns.get("kl")
    last = max(np.flatnonzero(kls.given & (kls.values > 0.0)), default=0) if kls else 0  # with a KL that says something
    for index, (step, used, own) in enumerate(zip(past.steps, given.rates.used, given.rates.own, strict=True)):
        factor = state.factor
        values = {name: past.columns[name].at(index) for name in NAMES if name in past.columns}
        known = used > 0.0 or (used == 0.0 and own > 0.0)  # where its own ramp is at 0 a run is, too, and no schedule
        lr_scale = float(used) / factor if known else 1.0
        if is_finite(kl := values.get("kl")) and (not known or (kl <= 0.0 and index < last)):
            del values["kl"]  # of nobody knows which lr, of no update, or rounded to nothing
        signals = Signals(**values, kl_source=past.kl_sources[index], lr_scale=lr_scale)
        state, decision = controller.step(given.config, state, signals)
        yield Moment(
            int(step), signals, factor, float(used), float(own), decision, _bears(given.config, state, decision.ceiling)
        )


def _bears(config: Config, state: State, ceiling: float | None) -> float | None:
    """The ceiling, without the fall of the KL target over the run: KL ~ lr^2."""
    return ceiling and ceiling * math.sqrt(config.target_kl / state.law["target"])


def _rates(past: Past, peak: float | None, warmup_steps: int | None) -> Rates:
    lrs = _sound(column) if (column := past.columns.get("lr")) else np.array([])
    known = np.flatnonzero(~np.isnan(lrs))
    highest = float(lrs[known].max()) if len(known) else 0.0
    if not highest:
        ramp = np.minimum((past.steps - past.steps[0] + 1) / (warmup_steps or math.nan), 1.0)
        return Rates(peak, ramp)
    if peak is not None and peak < highest * _PEAK:
        raise ValueError(f"lr={peak:g} is below the highest in the log, {highest:g}: say the peak of the schedule.")
    used = lrs / (peak or highest)
    top = int(known[np.argmax(used[known] >= _PEAK * used[known].max())])
    ramp_rows = known[known <= top]
    rising = len(ramp_rows) > 1 and bool(np.all(np.diff(used[ramp_rows]) >= 0.0))  # >=: some logs round
    unfinished = rising and top == known[-1] and peak is None
    return Rates(peak or highest, used, _steps_to_peak(past, used, ramp_rows) if rising else None, unfinished)


def _sound(lr: Column) -> NDArray[np.float64]:
    """The lrs, NaN for what is none."""
    return np.where(lr.given & np.isfinite(lr.values) & (lr.values >= 0.0), lr.values, math.nan)


def _steps_to_peak(past: Past, used: NDArray[np.float64], ramp: NDArray[np.int64]) -> int | None:
    """By the slope; the row at the peak is not on the ramp, but may lie anywhere after its end. None: it only leaps."""
    end = ramp[-2] if len(ramp) > 2 and used[ramp[-1]] >= _PEAK else ramp[-1]
    slope = float((used[end] - used[ramp[0]]) / (past.steps[end] - past.steps[ramp[0]]))
    return max(round(1.0 / slope), 1) if slope > _FLAT else None


def _assumed(past: Past, rates: Rates, found: int | None, nominal: int, adapted: bool) -> Iterator[str]:
    """What a reader should know before believing the rest."""
    if adapted:
        yield "the run was under adaptive warmup, whose lr is taken for its schedule: better replay its decision log"
    if "lr" not in past.columns and np.isnan(rates.used).all():
        yield "the log has no lr, so the KL says nothing about a ceiling: say --warmup-steps (1 for none)"
    elif "lr" not in past.columns:
        yield f"the log has no lr: a linear warmup over {plural(nominal, 'step')}, then a constant lr, is assumed"
    if rates.unfinished:
        yield "the lr was still rising when the log ends: if its peak was to be higher, say --lr"
    if not found:
        yield f"the run's own warmup cannot be seen: a tenth of the run, {plural(nominal, 'step')}, is taken as nominal"
    if past.every > 1 and any(one.host == SB3 for one in past.taken):
        rows = plural(max(round(nominal / past.every), 1), "rollout")
        yield f"a row is a rollout of {past.every} steps, and a decision, as live; this warmup is of {rows}"
    elif past.every > 1:
        yield f"the log has one step in {past.every}: one decision for each, where a live controller may take more"
    kl = past.columns.get("kl")
    if kl and (below := int(np.sum(kl.given & (kl.values <= 0.0)))):
        yield f"the KL is zero or below at {below} of {int(kl.given.sum())} steps: no measurement there"
    if kl and any(source.startswith("in_loop") for source in past.kl_sources):
        yield "a KL read in the loop misses the last update: the ceiling is good to a factor of 2 or so"
