"""The moves that are made without a KL: along the nominal ramp, under what was known before, or none at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from adaptive_warmup.alarms import is_finite
from adaptive_warmup.feedforward import OUTLIER
from adaptive_warmup.signals import NO_MEASUREMENT
from adaptive_warmup.statistics import Gain

if TYPE_CHECKING:
    from adaptive_warmup.alarms import Watch
    from adaptive_warmup.controller import Config, State
    from adaptive_warmup.signals import Signals

_PLAIN = 1e-4  # nats per token: a KL above this is not so near to 0 that the next one may round to it
_NO_UPDATE = 1e-6  # of the peak: at a schedule that is as low nothing is updated
_GAPS = 4  # a probe that measures every so many steps has not fallen silent before so many times that
_ON_THE_WAY = 1.65  # times the ceiling, e^.5: a fall that is done leaves less, and one that is not goes on
FALL = 1.5  # most that ln(factor) falls in one step: a cut to 22 %
_CALM = 2.0  # z of the grad norm up to which the pace is nominal; from an outlier's on the warmup waits


class Move(NamedTuple):
    """What a law proposes. `clock` only where the factor is exactly on the nominal ramp; `memory` is the law's own."""

    factor: float
    memory: Mapping[str, float]
    reasons: tuple[str, ...]
    ceiling: float | None = None
    held: bool = False
    clock: float | None = None


def measurable(lr_scale: float) -> bool:
    """Whether the KL of an update says something of the lr, so far as the user's schedule goes."""
    return _NO_UPDATE < lr_scale < 1.0 / _NO_UPDATE


def gain(state: State) -> Gain:
    """What is known of the run's gain."""
    return Gain(state.law.get("gain", 0.0), int(state.law.get("count", 0)))


def bounded(memory: Mapping[str, float]) -> bool:
    """Whether a KL bounds the lr: one was measured, and not too long ago."""
    return bool(memory.get("count")) and not memory.get("fading")


def without_kl(config: Config, state: State, signals: Signals, watch: Watch, hold: str | None) -> Move:
    """The move where no KL says what the lr did; `hold` is why the factor may not rise, if so."""
    if _stands(config, state, signals):
        return _still(state, signals, hold)
    return _unmeasured(config, state, watch, hold)


def _unmeasured(config: Config, state: State, watch: Watch, hold: str | None) -> Move:
    """No KL now: the nominal pace, under the last ceiling for as long as that is worth anything."""
    memory = dict(state.law)
    if "silent" in memory:  # a KL has been measured at some time
        memory["silent"] += 1
    ceiling = None
    if memory.get("count"):
        ceiling = gain(state).factor_for(memory["target"])
        if (late := memory["silent"] - _patience(config, state)) > 0:
            memory["fading"] = 1
            ceiling *= math.exp2(min(late / config.warmup_steps, 100.0))
            if ceiling >= 1.0:
                memory, ceiling = {"silent": memory["silent"]}, None
    if watch.reward.count and not bounded(memory):
        memory["blind"] = 1  # only the score tells: up along the exponential ramp
        _fade(config, memory, watch)
    pace = 0.0 if hold else min(max((OUTLIER - watch.grad_z) / (OUTLIER - _CALM), 0.0), 1.0)
    move = nominal_move(config, state, memory, pace, ceiling)
    if memory.get("fading"):  # no estimate any more, but a bound
        why = f"no kl for {memory['silent']:.0f} steps: {move.factor:.2g}, as the last known ceiling fades"
        move = move._replace(ceiling=None, reasons=(why,))
    return move._replace(reasons=(hold,), held=True) if hold else move


def _stands(config: Config, state: State, signals: Signals) -> bool:
    """Whether nothing was updated: the user's schedule is at 0, or the KL is, where it was not before.

    Such a step uses up neither the warmup nor what is known. A KL of 0 says so only where the one before was plainly
    above what rounds to 0, and for no longer than a nominal warmup; a clip fraction of 0 never does.
    """
    if signals.lr_scale <= _NO_UPDATE:
        return True
    if not is_finite(signals.kl) or signals.kl < 0.0 or signals.kl_lr is not None or not state.law.get("count"):
        return False
    plain = signals.kl_source != "clip_fraction" and state.law.get("last", 0.0) > _PLAIN
    return signals.kl <= NO_MEASUREMENT and plain and state.law["silent"] < _patience(config, state)


def _still(state: State, signals: Signals, hold: str | None) -> Move:
    ceiling = gain(state).factor_for(state.law["target"]) if state.law.get("count") else None
    memory = state.law if signals.lr_scale <= _NO_UPDATE else {**state.law, "silent": state.law["silent"] + 1}
    why = hold or f"no update: holding at {state.factor:.2g}"
    return Move(state.factor, memory, (why,), ceiling, held=True, clock=state.clock)


def _patience(config: Config, state: State) -> float:
    """Steps without a KL until the ceiling fades: one nominal warmup, and far more than ever between two."""
    return max(config.warmup_steps, 10, _GAPS * state.law.get("gap", 1.0))


def _fade(config: Config, memory: dict[str, float], watch: Watch) -> None:
    """A drop that is over is made good at a doubling a nominal warmup, so that a false alarm costs no more."""
    if "borne" in memory and not watch.drops:
        memory["borne"] *= 2.0 ** (1.0 / config.warmup_steps)
        if memory["borne"] >= memory["fell"]:
            del memory["borne"], memory["fell"]


def exponent(config: Config) -> float:
    """Rise of ln(factor) in a step of the exponential ramp, which is as long as the linear one."""
    return math.log(max(config.warmup_steps, 2)) / max(config.warmup_steps - 1, 1)


def nominal_move(config: Config, state: State, memory: Mapping[str, float], pace: float, ceiling: float | None) -> Move:
    """One step of `pace` nominal steps along the ramp, not past the ceiling, never down."""
    blind = bool(memory.get("blind"))
    clock = state.clock * math.exp(pace * exponent(config)) if blind else state.clock + pace
    clock = min(clock, float(config.warmup_steps))
    factor = clock / config.warmup_steps
    borne = memory.get("borne", 1.0)
    if factor > (bound := min(1.0 if ceiling is None else ceiling, borne)):
        way = FALL if ceiling is not None and state.factor > _ON_THE_WAY * bound else 0.0
        factor = max(bound, state.factor * math.exp(-way))
        what = "the last known ceiling" if ceiling is not None else "what the last drop of the score has left"
        return Move(factor, memory, (f"no kl: staying under {what}, {bound:.2g}",), ceiling, held=ceiling is None)
    if factor == 1.0:
        return Move(1.0, memory, ("warmup done",), ceiling, clock=clock)
    words = "nominal pace" if pace == 1.0 else f"grad norm out of its range: {pace:.0%} of the nominal pace"
    along = f"exponentially, to {factor:.2g}" if blind else f"{clock:.4g} of {config.warmup_steps} steps"
    return Move(factor, memory, (f"{words}: {along}",), ceiling, pace == 0.0, clock)
