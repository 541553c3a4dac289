"""Feed-forward: what the norm of a gradient says of the update that it is for, before that does any damage."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from adaptive_warmup.controller import Config, State
    from adaptive_warmup.statistics import LogScale

OUTLIER = 4.0  # z of a norm, against the run's own history, from which its update is cut


def cut(config: Config, state: State, grad_norm: float) -> float:
    """What to multiply the lr of the coming update by, in (0, 1].

    1 but for an outlier against the run's own history, which is cut to the size of a usual gradient (as a clipping
    threshold that the run sets itself), and for a norm that is not finite. That update must be skipped by the host: no
    lr makes it harmless.
    """
    if not _cuts(config, state):
        return 1.0
    if not math.isfinite(grad_norm):
        return config.floor
    if grad_norm <= 0.0 or state.watch.grad_norm.z(grad_norm) <= OUTLIER:
        return 1.0
    return max(math.exp(state.watch.grad_norm.mean - math.log(grad_norm)), config.floor)


class Limits(NamedTuple):
    """The norm `above` which an update is an outlier (NaN until the run's own history tells), and a `usual` one."""

    above: float
    usual: float


def limits(config: Config, state: State) -> Limits | None:
    """What `cut` goes by, for a host that may not read the norm; None where nothing is cut."""
    norms = state.watch.grad_norm
    return Limits(outlying(norms), math.exp(norms.mean)) if _cuts(config, state) else None


def outlying(grad_norm: LogScale) -> float:
    """The norm from which an update is an outlier, and is cut; NaN until the run's own history tells."""
    return grad_norm.at(OUTLIER)


def _cuts(config: Config, state: State) -> bool:
    return config.law != "linear" and (state.finished is None or config.guard)
