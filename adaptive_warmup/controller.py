"""The controller, pure: `start(config) -> State`, `step(config, state, signals) -> (State, Decision)`.

The lr of update t is base_lr * (the user's schedule) * factor_t, with factor_t in (0, 1]. `start` gives factor_0;
`step`, fed with what update t was like, gives factor_(t+1). How the factor moves is a law (`laws.py`); what is common
to all laws is here: the alarms, the phases, the end of the warmup, and handing over.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple

from adaptive_warmup import laws
from adaptive_warmup.alarms import Alarm, Answer, Watch, watch
from adaptive_warmup.quoting import quoted
from adaptive_warmup.signals import KLSource, Signals
from adaptive_warmup.statistics import Excess, Level, LogScale

Phase = Literal["warmup", "holding", "backing_off", "at_ceiling", "done"]
VERSION = 4
_LEAST_TARGET = 1e-9  # nats per token, which no KL can be told from 0
_EARLY, _LATE = 0.25, 0.1  # the KL target is whole over such a share of the nominal warmup, and falls to such a share


@dataclass(frozen=True)
class Config:
    """The settings of one controller.

    Attributes:
        warmup_steps: the nominal warmup: its length where no signal says otherwise. Update t = 0, 1, ... then runs at
            factor min(1, (t + 1) / warmup_steps).
        target_kl: the policy KL per step that the run should bear at first, at the peak of its schedule, nats per token
            (post-update k3; other sources are put on this scale). See `target_at` for how it falls.
        min_target_kl: what it falls to. None: a tenth of `target_kl`; `target_kl` itself keeps it where it is.
        min_warmup_steps: the warmup takes at least so many steps, however safe it looks. None: 3, or `warmup_steps`
            where that is less; in plain training (`training_probe`) the nominal warmup.
        min_factor: the factor is never cut below this, or below the first factor where that is less.
        guard: whether the ceiling goes on guarding when the warmup is done; False hands over for good.
        on_gaming: what follows when the KL reward is being gamed: `hold` (no further rise), `warn`, or `stop`.
        law: `feedback`, or `linear` (the fixed linear warmup, blind to all signals).

    Raises:
        ValueError: a value out of its range, quoted with the remedy.
    """

    warmup_steps: int
    target_kl: float = 0.01
    min_target_kl: float | None = None
    min_warmup_steps: int | None = None
    min_factor: float = 1e-3
    guard: bool = True
    on_gaming: Literal["hold", "warn", "stop"] = "hold"
    law: str = "feedback"

    def __post_init__(self) -> None:
        self._settle("warmup_steps", _whole)
        self._settle("target_kl", float)
        self._settle("min_factor", float)
        if self.min_warmup_steps is not None:
            self._settle("min_warmup_steps", _whole)
            if self.min_warmup_steps > self.warmup_steps:
                raise ValueError(
                    f"min_warmup_steps={self.min_warmup_steps} exceeds warmup_steps={self.warmup_steps}:"
                    " lower the first or raise the second."
                )
        if not _LEAST_TARGET <= self.target_kl < math.inf:
            raise ValueError(f"target_kl={self.target_kl!r} must be a positive number of nats per token, such as 0.01.")
        if self.min_target_kl is not None:
            self._settle("min_target_kl", float)
            if not 0 < self.min_target_kl <= self.target_kl:
                raise ValueError(
                    f"min_target_kl={self.min_target_kl!r} must be positive and at most target_kl={self.target_kl!r}."
                )
        if not 0 < self.min_factor <= 1:
            raise ValueError(f"min_factor={self.min_factor!r} must lie in (0, 1], such as 0.001.")
        if self.guard not in (True, False):
            raise ValueError(f"guard={self.guard!r} must be True or False.")
        if self.on_gaming not in ("hold", "warn", "stop"):
            raise ValueError(f"on_gaming={self.on_gaming!r} is unknown: use 'hold', 'warn' or 'stop'.")
        if self.law not in laws.LAWS:
            raise ValueError(f"law={self.law!r} is unknown: use one of {', '.join(map(repr, laws.LAWS))}.")

    def _settle(self, name: str, kind: Callable[[Any], int | float]) -> None:
        """Numbers of numpy's and the like become Python's, which every checkpoint can hold."""
        try:
            object.__setattr__(self, name, kind(getattr(self, name)))
        except (TypeError, ValueError) as error:
            remedy = "a whole number of steps, 1 or more (1 means no warmup)" if kind is _whole else "a number"
            raise ValueError(f"{name}={quoted(getattr(self, name))} must be {remedy}.") from error

    @property
    def shortest(self) -> int:
        """The least number of steps that the warmup takes."""
        return self.min_warmup_steps or min(3, self.warmup_steps)

    @cached_property
    def floor(self) -> float:
        """The least factor."""
        return min(self.min_factor, 1.0 / self.warmup_steps)

    @cached_property
    def rise(self) -> float:
        """Most that ln(factor) rises in a measured step: the ramp from 1 / warmup_steps then takes `shortest` steps.

        Without a warmup it is for what was cut to come back by.
        """
        return math.log(max(self.warmup_steps, 2)) / max(self.shortest - 1, 1)

    def target_at(self, step: int, source: KLSource = "post_update", lr_scale: float = 1.0) -> float:
        """The KL target of update number `step`: post-update k3, nats per token, at the peak of the schedule.

        Whole for a quarter of the nominal warmup; then it falls as 1 / step, and with it the lr as 1 / sqrt(step), the
        pace of stochastic approximation whose horizon is unknown (Nemirovski et al. 2009), down to `min_target_kl`. A
        policy that has learned most of what it will gets more noise than signal from its rewards. Where nothing is
        sampled from the policy (`training_probe`) that is not so, and the target stays.

        Args:
            lr_scale: multiplier of the user's schedule. Two decays would be one too many: the schedule's own counts
                against this one, and alone where it is the lower.
        """
        if source == "training_probe":
            return self.target_kl
        least = _LATE if self.min_target_kl is None else self.min_target_kl / self.target_kl
        share = max(min(_EARLY * self.warmup_steps / (step + 1), 1.0), least)
        schedule = min(lr_scale, 1.0) ** 2
        return self.target_kl * (share / schedule if share < schedule else 1.0)


def check_settings(names: Iterable[str]) -> None:
    """Raise TypeError naming the known settings if one of `names` is none of `Config`."""
    known = [f.name for f in fields(Config)]
    for name in names:
        if name not in known:
            raise TypeError(f"unknown setting {name!r}: known are {', '.join(known)}.")


def _whole(value: Any) -> int:
    number = operator.index(value)
    if number < 1 or isinstance(value, bool):
        raise ValueError
    return number


_ESTIMATORS = {"reward": Level, "grad_norm": LogScale, "paid": Excess, "answer": Answer}  # of the watch, by field


class State(NamedTuple):
    """All that the controller remembers, constant in size.

    Attributes:
        step: updates decided so far; `factor` belongs to update number `step`, counted from 0.
        clock: the factor as a position on the nominal ramp, in steps: factor = min(1, clock / warmup_steps).
        progress: the highest factor so far.
        finished: the step at which the factor first reached 1, None while it has not.
        law: the law's own memory, plain scalars by name.
        watch: the alarms' memory.
    """

    factor: float
    clock: float = 1.0
    step: int = 0
    progress: float = 0.0
    finished: int | None = None
    law: Mapping[str, float] = {}  # never written into
    watch: Watch = Watch()

    def to_dict(self) -> dict[str, Any]:
        """Plain scalars, lists and dicts: JSON and back changes nothing."""
        seen = self.watch._asdict()
        seen |= {name: seen[name]._asdict() for name in _ESTIMATORS}
        seen |= {name: list(seen[name]) for name in ("rewards", "kl_rewards")}
        return self._asdict() | {"law": dict(self.law), "watch": seen}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> State:
        """The inverse of `to_dict`."""
        seen = dict(plain["watch"])
        seen |= {name: make(**seen[name]) for name, make in _ESTIMATORS.items() if name in seen}
        seen |= {name: tuple(seen[name]) for name in ("rewards", "kl_rewards")}
        return cls(**{**plain, "law": dict(plain["law"]), "watch": Watch(**seen)})


class Decision(NamedTuple):
    """What the next update runs at, and why.

    Attributes:
        step: the update that the factor is for, counted from 0.
        factor: multiplies the lr of the user's schedule; in (0, 1].
        progress: how far the warmup has come, in [0, 1]: the highest factor so far; never falls.
        phase: `warmup` (rising), `holding` (an alarm forbids rising), `backing_off` (falling), `at_ceiling` (held
            below the peak by what the run bears), `done` (at the peak).
        ceiling: the factor whose KL is estimated to meet the target, above 1 where the peak's would be less; None
            where no KL has said.
        expected_end: the step at which the warmup should finish; None where nothing says that it will.
        reasons: short sentences, the decisive one first.
        alarms: what is wrong with the run now.
        stop: True where `on_gaming="stop"` asks to end the run.
    """

    step: int
    factor: float
    progress: float
    phase: Phase
    ceiling: float | None = None
    expected_end: int | None = None
    reasons: tuple[str, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    stop: bool = False


def start(config: Config, at: int = 0) -> State:
    """The state before update `at`, on the nominal warmup, as if no signal had come until there."""
    clock = float(min(at + 1, config.warmup_steps))
    factor = clock / config.warmup_steps
    finished = min(at, config.warmup_steps - 1) if factor == 1.0 else None
    return State(factor=factor, clock=clock, step=at, progress=factor, finished=finished)


def opening(config: Config, state: State) -> Decision:
    """The decision that belongs to a state of `start`, taken before anything is known of the run."""
    phase: Phase = "warmup" if state.finished is None else "done"
    reason = f"nominal warmup: step {state.clock:.0f} of {config.warmup_steps}"
    return Decision(state.step, state.factor, state.progress, phase, None, config.warmup_steps - 1, reasons=(reason,))


def step(config: Config, state: State, signals: Signals) -> tuple[State, Decision]:
    """Take in what the last update was like; decide the factor of the next one."""
    memory, alarms = watch(state.watch, signals, state.factor, config.floor)
    number = state.step + 1
    if state.finished is not None and not config.guard:
        after = state._replace(step=number, factor=1.0, watch=memory)
        return after, Decision(number, 1.0, 1.0, "done", None, state.finished, ("warmup done, handed over",), alarms)
    move = laws.LAWS[config.law](config, state, signals, memory, alarms)
    factor = max(move.factor, config.floor) if move.factor < 1.0 - 1e-12 else 1.0  # rounding is no step short
    finished = number if state.finished is None and factor == 1.0 else state.finished
    progress = 1.0 if finished is not None else max(state.progress, factor)
    clock = move.clock if move.clock is not None else factor * config.warmup_steps
    after = State(factor, clock, number, progress, finished, move.memory, memory)
    phase, end = _phase(state.factor, factor, move), finished
    if end is None:
        end = _expected_end(config, after, move.ceiling)
    stop = config.on_gaming == "stop" and any(alarm.name == "kl_gaming" for alarm in alarms)
    return after, Decision(number, factor, progress, phase, move.ceiling, end, move.reasons, alarms, stop)


def _phase(before: float, factor: float, move: laws.Move) -> Phase:
    if factor < 0.9 * before:
        return "backing_off"
    if factor == 1.0:
        return "done"
    if move.held:
        return "holding"
    if move.ceiling is not None and move.ceiling < 1.0 and factor >= 0.9 * move.ceiling:
        return "at_ceiling"
    return "warmup"


def _expected_end(config: Config, state: State, ceiling: float | None) -> int | None:
    if ceiling is not None and ceiling < 1.0:
        return None
    left = laws.steps_left(config, state.factor, state.law)
    return None if left is None else state.step + left
