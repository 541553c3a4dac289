"""What is wrong with a run, told apart from what to do with its lr: each alarm says what to check."""

from __future__ import annotations

import math
from operator import attrgetter
from typing import NamedTuple, TypeGuard

from adaptive_warmup.quoting import plural
from adaptive_warmup.signals import NO_MEASUREMENT, Signals
from adaptive_warmup.statistics import Excess, Level, LogScale, critical_t, slope_t

_PAID = 12.0  # sd by which a KL reward has added up above zero where it pays
_LONG = 16  # steps over which trends are tested
_DROP = 4.0  # standard errors below its best at which the score has dropped, half as many until it is back ...
_LOST = 0.1  # ... if this share of what had been gained is lost: a steady score's small waves are no drop
_NOTHING = 1e-4  # a KL reward that is less of the task reward, or of its noise, pays nobody
_RARE = 0.001  # chance of a false alarm where both trends are pure noise
_FAR = math.log(32.0)  # of ln(factor): where it has come down as far, the KL should have to a thousandth ...
_LOWEST = math.log(4.0)  # ... or, where it can come down no further, to a 16th ...
_HALF = math.log(2.0)  # ... and has not even halved
_SOON = 64  # KLs within which that counts: a run's gain drifts, but not so fast
_SHARE = 0.25  # smoothing of ln(KL)
_HUGE = 1e100
_DECISIVE = ("kl", "task_reward", "grad_norm", "loss")
_decisive = attrgetter(*_DECISIVE)


class Alarm(NamedTuple):
    """A finding: a stable name for programs, and a sentence for people."""

    name: str
    message: str

    @property
    def kind(self) -> str:
        """What tells it from another one: of `non_finite` what is not finite, else the name."""
        return self.message if self.name == "non_finite" else self.name


class Answer(NamedTuple):
    """How the KL answers to the factor: since it last halved, or the factor was last as high.

    At the end of the user's schedule the lr comes down further than any KL does, for rounding; so that does not count.

    Attributes:
        factor: ln(factor) then.
        kl: ln(KL) then, smoothed; `now` is that of the last one.
        fell: how far ln(factor) has come down since.
        reports: KLs since then; -1 before the first.
    """

    factor: float = 0.0
    kl: float = 0.0
    now: float = 0.0
    fell: float = 0.0
    reports: int = -1

    def update(self, kl: float, factor: float) -> Answer:
        """Take in a KL (> 0) that an update at `factor` (> 0) caused."""
        log_kl, log_factor = math.log(kl), math.log(factor)
        now = self.now + _SHARE * (log_kl - self.now) if self.reports >= 0 else log_kl
        if self.reports < 0 or self.reports == _SOON or log_factor >= self.factor or now < self.kl - _HALF:
            return Answer(log_factor, now, now, reports=0)
        return Answer(self.factor, self.kl, now, self.factor - log_factor, self.reports + 1)


class Watch(NamedTuple):
    """What the alarms remember of the run.

    `drop_steps` counts the steps since the present score drop set in, `drop_reports` the task rewards that have been
    reported in them, `unheard` the steps since the last one was; `unpaid` those since the last KL reward.
    """

    reward: Level = Level()
    grad_norm: LogScale = LogScale()
    rewards: tuple[float, ...] = ()
    kl_rewards: tuple[float, ...] = ()
    grad_z: float = 0.0
    drop_steps: int = 0
    paid: Excess = Excess()
    unheard: int = 0
    drop_reports: int = 0
    unpaid: int = 0
    answer: Answer = Answer()

    @property
    def drops(self) -> bool:
        """Whether there is a score drop now: long after the last report nobody knows."""
        return self.drop_reports > 0 and self.unheard <= _LONG


def watch(memory: Watch, signals: Signals, factor: float = 1.0, floor: float = 0.0) -> tuple[Watch, tuple[Alarm, ...]]:
    """Take in one step's signals; the alarms are those that hold now, empty on a healthy step.

    Args:
        factor: what the step ran at.
        floor: the least that it may be.
    """
    reward, grad_norm, grad_z = memory.reward, memory.grad_norm, 0.0
    rewards, kl_rewards, paid = memory.rewards, memory.kl_rewards, memory.paid
    if is_finite(signals.task_reward):
        reward = reward.update(signals.task_reward)
    if is_finite(signals.grad_norm) and signals.grad_norm > 0.0:
        grad_z = grad_norm.z(signals.grad_norm)
        grad_norm = grad_norm.update(signals.grad_norm)
    if is_finite(signals.kl_reward):
        kl_reward = _counted(signals.kl_reward, reward)
        paid = paid.update(kl_reward)
        kl_rewards = (*kl_rewards, kl_reward)[-_LONG:]
        if is_finite(signals.task_reward):  # trends are compared only over the same steps
            rewards = (*rewards, signals.task_reward)[-_LONG:]
    drop_steps, drop_reports, unheard = _dropped(memory, reward, is_finite(signals.task_reward))
    unpaid = memory.unpaid + 1 if signals.kl_reward is None else 0
    answer = _answer(memory.answer, signals, factor)
    after = Watch(
        reward, grad_norm, rewards, kl_rewards, grad_z, drop_steps, paid, unheard, drop_reports, unpaid, answer
    )
    found = (
        _non_finite(signals),
        _gaming(after) if unpaid <= _LONG else None,
        _drop(after),
        _unmoved(answer, factor <= floor),
    )
    return after, tuple(filter(None, found))


def _dropped(memory: Watch, reward: Level, reported: bool) -> tuple[int, int, int]:
    """`drop_steps`, `drop_reports` and `unheard` now. A drop is judged on what is reported."""
    if not reported:
        return memory.drop_steps + (memory.drop_reports > 0), memory.drop_reports, memory.unheard + 1
    if reward.lost > _LOST and reward.drop > (_DROP if not memory.drop_reports else 0.5 * _DROP):
        return memory.drop_steps + 1, memory.drop_reports + 1, 0
    return 0, 0, 0


def _counted(kl_reward: float, reward: Level) -> float:
    """The KL reward; 0 where it is next to nothing beside the task reward, so that nobody could live by it."""
    size = max(abs(reward.level), math.sqrt(reward.variance)) if reward.count else 0.0
    return kl_reward if abs(kl_reward) >= _NOTHING * size else 0.0


def drop_bound(reward: Level) -> float:
    """The level of the task reward below which a score drop is rung; NaN until the run's own noise is known."""
    if not reward.settled:
        return math.nan
    return reward.best - max(_DROP * reward.error, _LOST * reward.gained)


def is_finite(x: float | None) -> TypeGuard[float]:
    """True for a reported value that arithmetic can be done on; squares of larger ones would overflow."""
    return x is not None and -_HUGE < x < _HUGE


def _non_finite(signals: Signals) -> Alarm | None:
    values = _decisive(signals)
    for x in values:
        if x is not None and not -_HUGE < x < _HUGE:
            break
    else:
        return None  # as at nearly every step
    broken = [f"{name} is {x}" for name, x in zip(_DECISIVE, values, strict=True) if not (x is None or is_finite(x))]
    return Alarm(
        "non_finite",
        f"{' and '.join(broken)}: check for overflow (fp16?), empty masks, log(0); skip updates that are not finite",
    )


def _gaming(memory: Watch) -> Alarm | None:
    if memory.paid.total > _PAID:
        return Alarm(
            "kl_gaming",
            f"the KL reward pays the policy ({memory.paid.last:+.3g} now, lately {memory.paid.total:.0f} standard"
            " deviations above zero in sum): tokens count in the KL that it did not sample; check the response mask"
            " (retrieved text, padding) and the sampler (top-p, top-k, minimum length)",
        )
    if len(memory.rewards) == len(memory.kl_rewards) == _LONG:
        critical = critical_t(_RARE, _LONG - 2)
        if slope_t(memory.kl_rewards) > critical and slope_t(memory.rewards) < -critical:
            return Alarm(
                "kl_gaming",
                f"over {_LONG} steps the KL reward rises while the task reward falls: the policy gives up the task for"
                " the KL term; check kl_coef against the task reward's range, the response mask and the sampler",
            )
    return None


def _answer(memory: Answer, signals: Signals, factor: float) -> Answer:
    kl, scale = signals.kl, signals.lr_scale
    if not (is_finite(kl) and kl > NO_MEASUREMENT and 0.0 < scale < math.inf):
        return memory
    ran_at = signals.lr_of_kl(factor) / scale
    return memory.update(kl, ran_at) if 0.0 < ran_at < math.inf else memory


def _unmoved(answer: Answer, at_floor: bool) -> Alarm | None:
    if answer.fell < (_LOWEST if at_floor else _FAR):
        return None
    lower, kl = math.exp(min(answer.fell, 99.0)), math.exp(answer.now)
    return Alarm(
        "kl_unmoved",
        f"the factor is {lower:.2g} times lower than {answer.reports} KLs ago and the KL, {kl:.2g}, not even halved: it"
        " does not come of the updates; check that one program measures both of its sides (not the sampler and the"
        " trainer), on the same tokens and without dropout",
    )


def _drop(memory: Watch) -> Alarm | None:
    if not memory.drops:
        return None
    return Alarm(
        "score_drop",
        f"the task reward is at {memory.reward.level:.3g}, down from {memory.reward.best:.3g},"
        f" for {plural(memory.drop_steps, 'step')}: more than its noise explains",
    )
