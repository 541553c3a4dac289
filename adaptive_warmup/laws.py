"""Laws: how the factor moves. A law is a function of the config, the state, the signals and what the alarms found.

Each returns a `Move`; the controller clips its factor to [config.floor, 1] and does the rest. To add a law, write one
and enter it in `LAWS`; `adaptive_warmup.testing.check_law` checks it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from adaptive_warmup.alarms import is_finite
from adaptive_warmup.ramp import (
    FALL,
    Move,
    bounded,
    exponent,
    gain,
    measurable,
    nominal_move,
    without_kl,
)
from adaptive_warmup.signals import NO_MEASUREMENT, PROBES, kl_on_target, kl_scale, updates_of
from adaptive_warmup.statistics import Gain

if TYPE_CHECKING:
    from adaptive_warmup.alarms import Alarm, Watch
    from adaptive_warmup.controller import Config, State
    from adaptive_warmup.signals import KLSource, Signals

__all__ = ["LAWS", "Law", "Move", "feedback", "linear", "steps_left"]

_SMALL = 1.0  # off the ceiling by less than so much of ln(factor), half of the way is gone, the rest being noise
_ABSURD = 50.0  # times its target: after such a KL the factor does not rise, whatever those before it say
_ROUNDING = 1e-9
_STILL = 1e-3  # of ln(factor), which nobody would call a move
_CUT = 0.5  # a score drop halves the factor ...
_CUT_EVERY = 8  # ... and, where no KL bounds the lr, does so again while it lasts
_FEW = 8  # updates on one rollout up to which a step counts as one


class Law(Protocol):
    """The signature of a law. Pure: the same arguments give the same move, bit for bit."""

    def __call__(self, config: Config, state: State, signals: Signals, watch: Watch, alarms: tuple[Alarm, ...]) -> Move:
        """Propose the factor of the next update."""
        ...


def linear(config: Config, state: State, signals: Signals, watch: Watch, alarms: tuple[Alarm, ...]) -> Move:
    """The null law: the fixed linear warmup, whatever the signals say."""
    return nominal_move(config, state, {}, 1.0, None)


def feedback(config: Config, state: State, signals: Signals, watch: Watch, alarms: tuple[Alarm, ...]) -> Move:
    """The log-gain law: learn the run's gain (KL per lr^2) and go to the lr whose KL is the target.

    The KL target (`Config.target_at`) belongs to the peak of the user's schedule: the schedule lies on top of the
    ceiling, so that where it decays by s the KL decays by s^2.

    Where the host reports no KL the pace is nominal, a drop of the task reward cuts the factor and has it come back
    slowly, and an outlying grad norm slows it. As a drop is seen late, the ramp is then exponential, of the nominal
    length: what lies some steps back was never much lower.
    """
    kl = signals.kl
    hold = _hold(config, state, alarms)
    lr = signals.lr_of_kl(state.factor)
    if is_finite(kl) and kl > NO_MEASUREMENT and measurable(signals.lr_scale) and 0.0 < lr < math.inf:
        move = _toward(config, state, kl, lr, signals, hold)
    else:
        move = without_kl(config, state, signals, watch, hold)
    again = watch.drop_reports % _CUT_EVERY == 1 and not bounded(move.memory)
    if is_finite(signals.task_reward) and (watch.drop_reports == 1 or again):
        return _cut_back(config, move, _named(alarms, "score_drop").message, anew=watch.drop_reports == 1)
    return move


def _cut_back(config: Config, move: Move, message: str, anew: bool) -> Move:
    """Down by `_CUT`; where no KL is known, noting where the score dropped and where that leaves us."""
    factor, memory = max(_CUT * move.factor, config.floor), move.memory
    if not bounded(memory):
        memory = {**memory, "borne": factor, "fell": move.factor if anew else memory.get("fell", move.factor)}
    why = f"{message}: backing off to {factor:.2g}"
    return move._replace(factor=factor, memory=memory, clock=None, reasons=(why, *move.reasons))


LAWS: dict[str, Law] = {"feedback": feedback, "linear": linear}


def steps_left(config: Config, factor: float, memory: Mapping[str, float]) -> int | None:
    """Steps from `factor` to the peak where no ceiling is in the way; None where a drop of the score is."""
    if "borne" in memory:
        return None
    if memory.get("fading"):
        return math.ceil(-math.log2(factor) * config.warmup_steps)
    if memory.get("count") and not memory.get("nominal"):
        return math.ceil(-math.log(factor) / config.rise)
    steps = -math.log(factor) / exponent(config) if memory.get("blind") else config.warmup_steps * (1.0 - factor)
    return math.ceil(steps - 1e-9)  # rounding is no step more


def _is_nominal(config: Config, source: KLSource) -> bool:
    """Whether the way up is no quicker than the nominal warmup, however safe it looks.

    So in plain training, where a step is a single update, and three of them are no warmup: what a quick way up does
    shows in no KL, only in the loss at the end (`benchmarks/experiments/lm/`). `min_warmup_steps` says otherwise.
    """
    return source == "training_probe" and config.min_warmup_steps is None


def _gap(state: State) -> int:
    """Steps since the KL was measured before."""
    return int(state.law.get("silent", 0)) + 1


def _weight(state: State, source: KLSource) -> int:
    """How many steps a KL speaks for: of a probe those since it measured before, of many updates one for each eight."""
    return _gap(state) if source in PROBES else max(updates_of(source) // _FEW, 1)


def _worth(state: State, source: KLSource) -> int:
    """How many steps' worth of good news a KL is: as many as it speaks for.

    Where many clipped updates are made on one rollout, clipping ends the policy's way at a low lr, so that the KL
    hardly grows with the lr until that is far higher, and good news by the square of the lr is too little. That holds
    on the way up, as long as no KL has exceeded its target: past that, believing good news as soon as bad would keep
    the lr too high (`benchmarks/experiments/cartpole/`).
    """
    return 1 if state.law.get("met") else _weight(state, source)


def _seen(state: State, signals: Signals, kl: float, lr: float, budget: float) -> Gain:
    """What is now known of the gain. The second of two absurd KLs is no reading gone wrong: it counts whole."""
    known, scale = gain(state), kl_scale(signals.kl_source)
    if kl > _ABSURD * budget and state.law.get("last", 0.0) > _ABSURD * budget / scale:
        return Gain(max(Gain().update(kl / scale, lr).log, known.log), known.count + 1)
    return known.update(kl / scale, lr, _worth(state, signals.kl_source))


def _hold(config: Config, state: State, alarms: tuple[Alarm, ...]) -> str | None:
    """Why the factor may not rise now, if so."""
    for alarm in alarms:
        if alarm.name == "non_finite":
            return f"{alarm.message.split(':', 1)[0]}: holding at {state.factor:.2g}"
        if alarm.name == "score_drop" or (alarm.name == "kl_gaming" and config.on_gaming != "warn"):
            return f"{alarm.message.split(':', 1)[0]}: no further rise"
    return None


def _named(alarms: tuple[Alarm, ...], name: str) -> Alarm:
    return next(alarm for alarm in alarms if alarm.name == name)


def _toward(config: Config, state: State, kl: float, lr: float, signals: Signals, hold: str | None) -> Move:
    """Go to the ceiling in logs, at most `FALL` down, and up by what is allowed; not at all where something holds."""
    target = config.target_at(state.step, signals.kl_source, signals.lr_scale)
    budget = kl_on_target(target, signals.kl_source, signals.lr_scale)
    seen = _seen(state, signals, kl, lr, budget)
    ceiling = seen.factor_for(target)
    off = want = math.log(ceiling / state.factor)
    if abs(want) < _SMALL:
        want *= 1.0 - 0.5 ** _weight(state, signals.kl_source)
    nominal = _is_nominal(config, signals.kl_source)
    rise = math.log1p(1.0 / (config.warmup_steps * state.factor)) if nominal else config.rise
    held = hold is not None or kl > _ABSURD * budget
    allowed = 0.0 if held else min(_allowed(state, signals, rise), _room(config, state))
    step = max(min(want, allowed), -FALL, math.log(config.floor / state.factor))
    factor = min(state.factor * math.exp(step), 1.0)
    late = " of an earlier step" if signals.kl_lr is not None else ""
    other = not late and (off > 0.0) == (kl > budget)  # this KL alone would have it go the other way
    smoothed = f" (smoothed {math.exp(-2.0 * off):.3g} x)" if other else ""
    what = f"kl {kl:.2g}{late} is {kl / budget:.2g} x the target {budget:.2g}{smoothed}: {_went(step, factor)}"
    memory = {"gain": seen.log, "count": seen.count, "silent": 0, "gap": max(_gap(state), state.law.get("gap", 1)),
              "target": target}  # fmt: skip
    memory["last"] = kl / kl_scale(signals.kl_source)
    if nominal:
        memory["nominal"] = 1
    if updates_of(signals.kl_source) > _FEW and (kl > budget or state.law.get("met")):
        memory["met"] = 1
    return Move(factor, memory, (hold, what) if hold else (what,), ceiling, held)


def _room(config: Config, state: State) -> float:
    """Most that ln(factor) may rise, for `shortest` steps of warmup, where linear and exponential steps are mixed."""
    ahead = config.shortest - state.step - 2
    if state.finished is not None or ahead <= 0:
        return math.inf
    most = max(math.exp(-config.rise * ahead), min((state.step + 2) / config.warmup_steps, 1.0))
    return max(math.log(most / state.factor), 0.0) + _ROUNDING


def _went(step: float, factor: float) -> str:
    """In words, a step of ln(factor) to `factor`."""
    if factor == 1.0:
        return "at the peak"
    if abs(step) < _STILL:
        return f"holding at {factor:.2g}"
    return f"{'rising' if step > 0.0 else 'backing off'} to {factor:.2g}"


def _allowed(state: State, signals: Signals, rise: float) -> float:
    """Most that ln(factor) may rise now: to `rise` above the lr that the KL is of, which it has shown to be borne.

    So the later the KL, the slower the rise: by `rise` in as many steps as it takes to hear of it.
    """
    if signals.kl_lr is None:
        return rise
    ahead = math.log(state.factor * signals.lr_scale / signals.kl_lr)
    return max(min(rise - ahead, rise), 0.0)
