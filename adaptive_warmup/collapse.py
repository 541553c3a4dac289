"""When a task reward counts as collapsed: for reports, and for what a replay says of a run of the past."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

SMOOTH = 8  # rewards of the mean by which a score is judged
_CLEAR = 3.0  # standard errors, of the difference of two such means, that a fall must exceed
_HUGE = 1e100  # a score beyond it is as good as there: the squares of larger ones overflow
_FAIR = 0.2  # where scores are negative, likewise of their size: they wander by more than their noise between steps


class Course(NamedTuple):
    """How the rewards of a run went.

    Attributes:
        means: over 8 of them each, in order; over all where they are fewer.
        best: the highest of these.
        floor: what a run that has lost everything is at: 0; or the lowest mean, where that is below.
        least: a fall by no more is none.
    """

    means: tuple[float, ...]
    best: float
    floor: float
    least: float

    def fallen(self, score: float) -> bool:
        """Whether a mean, or a final score, is below half of the best: of the way there from the floor."""
        return score - self.floor < 0.5 * (self.best - self.floor) and self.best - score > self.least


def course(rewards: Sequence[float]) -> Course | None:
    """Of rewards that are all finite; None of none."""
    if not rewards:
        return None
    rewards = [min(max(reward, -_HUGE), _HUGE) for reward in rewards]
    ends = range(min(SMOOTH, len(rewards)), len(rewards) + 1)
    means = tuple(math.fsum(part) / len(part) for part in (rewards[max(end - SMOOTH, 0) : end] for end in ends))
    apart = math.fsum((after - before) ** 2 for before, after in itertools.pairwise(rewards))
    best, least = max(means), _CLEAR * math.sqrt(apart / max(len(rewards) - 1, 1) / SMOOTH)
    if min(means) < 0.0:
        least = max(least, _FAIR * max(map(abs, means)))
    return Course(means, best, min(0.0, *means), least)
