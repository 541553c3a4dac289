"""Online estimators in constant memory. Each is immutable: `update(x)` gives the next one; all state is plain scalars.

Non-finite values never come in here; the alarms keep them out.
"""

from __future__ import annotations

import math
from functools import cache
from operator import mul
from typing import NamedTuple

_LEVEL = 0.25  # smoothing of a level: remembers about 7 steps
_NOISE = 0.1  # smoothing of its noise: about 20 steps
_FORGET = 0.01  # the best of a run fades over about 100 steps, so that a task that grows harder is no drop for ever
_SIZE = 0.01  # of a level: gains below this are no scale to measure losses by
_SETTLED = 8  # observations before an estimate is believed
_OUTLIER = 5.0  # a value further out than so many sd counts as so many sd

_TURN = 0.01  # smoothing of how often a series turns round: remembers about 200 steps
_TURNS = 100  # turns, or not, before that is believed
_UNLIKE, _ALIKE = 0.5, 0.15  # 1 - rho from which on values count as independent, and the least that is believed

_SLACK, _FAR = 0.5, 5.0  # sd that a value above zero is allowed, and beyond which it counts as no more
_MOST = 18.0  # a sum goes no higher, so that it is forgotten within 36 steps at zero, and sooner below

_BAD_NEWS, _GOOD_NEWS = 0.5, 0.15  # the share of a surprise that is believed at once


class Gain(NamedTuple):
    """ln(KL / lr_factor^2), the run's gain, as a smoothed estimate that believes bad news sooner than good news.

    For a small update the KL is quadratic in the step, KL = g * lr^2 / 2 with g the Fisher norm of the direction
    (Amari 1998), so ln KL - 2 ln lr is the same at every lr but for slow drift and noise.
    """

    log: float = 0.0
    count: int = 0  # type: ignore[assignment]  # a tuple's method of that name is not missed

    def update(self, kl: float, factor: float, worth: int = 1) -> Gain:
        """Take in a KL (> 0, nats per token) that an update at `factor` (> 0) caused; it speaks for `worth` steps.

        Good news is believed by a little a step, up to eight steps' worth at once.
        """
        seen = math.log(kl) - 2.0 * math.log(factor)
        if not self.count:
            return Gain(seen, 1)
        surprise = min(seen - self.log, 4.0)  # one absurd reading is not allowed to move it without bound
        good = _GOOD_NEWS if worth == 1 else 1.0 - (1.0 - _GOOD_NEWS) ** min(worth, 8)
        share = _BAD_NEWS if surprise > 0 else good
        return Gain(self.log + share * surprise, self.count + 1)

    def factor_for(self, kl: float) -> float:
        """The factor at which an update would cause `kl`."""
        return math.exp(max(min(0.5 * (math.log(kl) - self.log), 100.0), -100.0))


class Level(NamedTuple):
    """The level of a noisy series, its best so far, and how far below the best it is in units of its own noise.

    The noise comes from successive differences (von Neumann 1941), so a trend does not count as noise. `noise` is that
    of when the best was reached: so of a series that is nearly always 0 a single success is known for one.

    Of values that hang together (rolling means, stale batches, data in order) the differences tell too little. How
    often the series turns round tells by how much: independent values do so 2 times in 3 (Bienaymé 1874), whatever
    their distribution, and Gaussian ones with a serial correlation of rho 1/2 + asin((1 - rho) / 2) / pi. `stretch` is
    what the variance of a level is multiplied by for it, and of when the best was reached as well: a series that falls
    hangs together too.
    """

    level: float = 0.0
    best: float = 0.0
    low: float = 0.0
    last: float = 0.0
    variance: float = 0.0
    count: int = 0  # type: ignore[assignment]  # a tuple's method of that name is not missed
    noise: float = 0.0
    step: float = 0.0
    turns: float = 0.0
    turns_count: int = 0
    stretch: float = 1.0

    def update(self, x: float) -> Level:
        """Take in one value; one far outside the noise counts as one just outside.

        But where the one before was far out as well, on the same side, the series moves, and a value may lie beyond
        that one by as much. Else the noise, learned from what counts, would shrink, and so would what counts, and the
        level stay behind.
        """
        if not self.count:
            return Level(x, x, x, x, 0.0, 1)
        reach = _OUTLIER * math.sqrt(self.variance)
        if self.count >= _SETTLED and reach > 0.0:
            far = abs(self.last - self.level) > 0.5 * reach  # the level itself has gone a part of the way since then
            before = self.last if far else self.level
            x = min(max(x, min(before, self.level) - reach), max(before, self.level) + reach)
        step, count = x - self.last, self.count + 1
        variance, (turns, turns_count) = _noise(self.variance, step, self.count), self._turned(step)
        level = self.level + max(_LEVEL, 1.0 / count) * (x - self.level)
        if self.count < _SETTLED:
            return Level(level, level, level, x, variance, count, variance, step, turns, turns_count)
        best = max(level, self.best - _FORGET * (self.best - level))
        noise, stretch = self.noise, self.stretch
        if best == level:
            noise, stretch = variance, _stretch(turns) if turns_count >= _TURNS else 1.0
        low = min(level, self.low)
        return Level(level, best, low, x, variance, count, noise, step, turns, turns_count, stretch)

    def _turned(self, step: float) -> tuple[float, int]:
        """`turns` and `turns_count` after a step; one of 0 says nothing."""
        if not step or not self.step:
            return self.turns, self.turns_count
        turned = (step > 0.0) != (self.step > 0.0)
        weight = max(_TURN, 1.0 / (self.turns_count + 1))
        return self.turns + weight * (turned - self.turns), self.turns_count + 1

    @property
    def gained(self) -> float:
        """How far the best is above the lowest level so far; a hundredth of their size at least."""
        return max(self.best - self.low, _SIZE * max(abs(self.best), abs(self.low)))

    @property
    def lost(self) -> float:
        """The share that is lost of what had been gained: 0 at the best, 1 at the lowest level so far."""
        gained = self.gained
        return (self.best - self.level) / gained if gained > 0.0 else 0.0

    @property
    def drop(self) -> float:
        """How far the level is below its best, in standard errors of that difference; 0 until settled."""
        gap = self.best - self.level
        if not self.settled or gap <= 0.0:
            return 0.0
        return gap / self.error if self.error > 0.0 else math.inf

    @property
    def error(self) -> float:
        """The standard error of the difference between two levels, by the noise now, or then if it was the greater."""
        noise = self.variance + max(self.noise, self.variance)
        return math.sqrt(self.stretch * noise * _LEVEL / (2.0 - _LEVEL))

    @property
    def settled(self) -> bool:
        """Whether a drop would be believed yet."""
        return self.count > _SETTLED


class Excess(NamedTuple):
    """How far a noisy series has lately added up above zero, in standard deviations of its own noise.

    Page's cumulative sum ("Continuous inspection schemes", Biometrika 1954) with a slack of half a standard deviation:
    of Gaussian noise about zero, of known size, it passes 12 once in a million steps (Siegmund 1985); a series that
    comes to lie 5 standard deviations above zero takes it there in 3 steps.
    """

    total: float = 0.0
    last: float = 0.0
    variance: float = 0.0
    count: int = 0  # type: ignore[assignment]  # a tuple's method of that name is not missed

    def update(self, x: float) -> Excess:
        """Take in one value."""
        if not self.count:
            return Excess(0.0, x, 0.0, 1)
        total = min(max(self.total + self._z(x) - _SLACK, 0.0), _MOST)
        return Excess(total, x, _noise(self.variance, x - self.last, self.count), self.count + 1)

    def _z(self, x: float) -> float:
        """Of noise that is known from few values, no more than half as many deviations; of none, the sign counts."""
        most = min(_FAR, 0.5 * self.count)
        if self.variance <= 0.0:
            return math.copysign(most, x) if x else 0.0
        return min(x / math.sqrt(self.variance), most)


def _noise(variance: float, difference: float, count: int) -> float:
    """The variance of a series' noise, from successive differences; at first their plain mean."""
    return variance + max(_NOISE, 1.0 / count) * (0.5 * difference * difference - variance)


def _stretch(turns: float) -> float:
    """The variance of a level over what it would be if the values were independent, by the share of turns."""
    apart = 2.0 * math.sin(math.pi * (turns - 0.5))  # 1 - rho
    if apart > _UNLIKE:
        return 1.0
    apart = max(apart, _ALIKE)
    kept = (1.0 - _LEVEL) * (1.0 - apart)
    return (1.0 + kept) / (1.0 - kept) / apart


class LogScale(NamedTuple):
    """Typical size of a positive series, in logs, so that a constant factor on all values changes nothing."""

    mean: float = 0.0
    variance: float = 0.0
    count: int = 0  # type: ignore[assignment]  # a tuple's method of that name is not missed

    def update(self, x: float) -> LogScale:
        """Take in one value > 0."""
        log = math.log(x)
        if not self.count:
            return LogScale(log, 0.0, 1)
        surprise = log - self.mean
        weight = max(0.05, 1.0 / (self.count + 1))
        mean = self.mean + weight * surprise
        return LogScale(mean, (1.0 - weight) * (self.variance + weight * surprise * surprise), self.count + 1)

    def z(self, x: float) -> float:
        """How far out `x` > 0 is, in standard deviations of the log; 0 until settled."""
        if self.count < _SETTLED:
            return 0.0
        return (math.log(x) - self.mean) / self._sd

    def at(self, z: float) -> float:
        """The value that is `z` standard deviations of the log out; NaN until settled."""
        return math.exp(min(self.mean + z * self._sd, 700.0)) if self.count >= _SETTLED else math.nan

    @property
    def _sd(self) -> float:
        # Norms that hardly vary would make an outlier of a change that means nothing: 10 % at least is one sd.
        return max(math.sqrt(self.variance), 0.1)


def slope_t(window: tuple[float, ...]) -> float:
    """Student's t of the hypothesis that the window has no linear trend; signed."""
    n = len(window)
    mean, times = sum(window) / n, _centred(n)
    off = [x - mean for x in window]
    spread = n * (n * n - 1) / 12.0
    slope = sum(map(mul, times, off)) / spread
    rest = [x - slope * time for x, time in zip(off, times, strict=True)]
    return _ratio(slope, math.sqrt(sum(map(mul, rest, rest)) / (n - 2) / spread))


@cache
def _centred(n: int) -> tuple[float, ...]:
    """0 .. n - 1, less their mean."""
    return tuple(i - 0.5 * (n - 1) for i in range(n))


def _ratio(estimate: float, error: float) -> float:
    if error > 0.0:
        return estimate / error
    return math.copysign(math.inf, estimate) if estimate else 0.0


@cache
def critical_t(p: float, degrees: int) -> float:
    """The t that chance exceeds with probability `p` (one-sided) at so many degrees of freedom."""
    from scipy.special import stdtrit  # here, since it costs more to import than the whole library

    return float(-stdtrit(degrees, p))
