"""What one step was like: the signals a run reports, each with its unit, estimator and reduction."""

from __future__ import annotations

import difflib
import re
from functools import cache
from typing import NamedTuple

NO_MEASUREMENT = 1e-12  # a KL at or below this is a skipped update or a constant, and says nothing about the lr

KLSource = str  # a key of `KL_SCALE`, or `in_loop:4x2`, `post_update:4x8`


class Signals(NamedTuple):
    """The signals of one step. Every one is optional: None is "not reported", NaN is "reported, and broken".

    A step is what lies between two decisions: an RL step (rollout, then its mini-batches) where the host has such
    steps, else one optimizer update. Estimators k1, k2, k3 are those of Schulman, "Approximating KL divergence" (2020).

    Attributes:
        kl: how far the step moved the policy: KL(before the step || after it), nats per response token, averaged over
            the tokens. Best is k3 on the step's own rollout after its last mini-batch, see `kl_source`.
        kl_source: how `kl` was measured, since each way has its own scale.
            `post_update`: after the last update of the step; `post_update:4x8` says besides that these were 4 epochs of
            8 mini-batches, which counts where they are many. `probe`: the same, exact over the vocabulary, on a few
            sequences. `training_probe`: a probe where nothing is sampled from the policy, as in fine-tuning, which
            bears three times as much. `in_loop`: the mean of what PPO code calls `approx_kl`, measured *before* each
            mini-batch's update; better `in_loop:4x2`, which says how many PPO epochs of how many mini-batches it was
            taken over, since its scale hangs on that. `clip_fraction`: not a KL at all; the share of tokens whose ratio
            was clipped, for hosts that report nothing else.
        reference_kl: signed k1 against the frozen reference, nats per response token (k3, which has no sign, where a
            host has no other). Negative in the mean only where tokens were counted that the policy did not sample.
        task_reward: mean score of the rollout, without any KL term, in the task's own units.
        kl_reward: the KL part of the reward, mean over sequences of its sum over a sequence's tokens, signed:
            -kl_coef * sum(k1). Healthy runs have it at or below zero.
        grad_norm: L2 norm of the gradient before clipping.
        loss: the loss that was minimised.
        clip_fraction: share of response tokens whose importance ratio left the clip range.
        entropy: of the policy, nats per response token.
        explained_variance: of the returns by the value model, at most 1.
        update_norm: L2 norm of the parameters' change.
        lr_scale: the multiplier of the user's own schedule: the lr of the step was base_lr * factor * lr_scale. The
            adapters fill it in.
        kl_lr: of a `kl` that comes late, the lr of the step that it is of, as a multiple of base_lr; None: it is of
            this step. The regulator fills it in, see its `of_step`.
    """

    kl: float | None = None
    kl_source: KLSource = "post_update"
    reference_kl: float | None = None
    task_reward: float | None = None
    kl_reward: float | None = None
    grad_norm: float | None = None
    loss: float | None = None
    clip_fraction: float | None = None
    entropy: float | None = None
    explained_variance: float | None = None
    update_norm: float | None = None
    lr_scale: float = 1.0
    kl_lr: float | None = None

    def lr_of_kl(self, factor: float) -> float:
        """The lr that `kl` is of, as a multiple of base_lr, where the step ran at `factor`."""
        return factor * self.lr_scale if self.kl_lr is None else self.kl_lr


# What each way of measuring reads where the post-update k3 reads 1. `in_loop` is blind to the last mini-batch's update
# and so reads 3 to 100 times too low, see `in_loop_scale`; `clip_fraction` at clip range 0.2. `training_probe`
# reads the same as `probe`, but the run bears more of it: see `integrations/probing.py`.
KL_SCALE: dict[KLSource, float] = {
    "post_update": 1.0,
    "probe": 1.0,
    "training_probe": 3.0,
    "in_loop": 0.1,
    "clip_fraction": 1.75,
}
PROBES: tuple[KLSource, ...] = ("probe", "training_probe")  # which do not measure every step
KL_SOURCES: tuple[KLSource, ...] = tuple(KL_SCALE)
_COUNTED = re.compile(r"(in_loop|post_update):([1-9]\d{0,5})x([1-9]\d{0,5})")
_BEFORE_ALL = "in_loop:1x1"  # the only update is still to come: there is no KL yet
_FRESH = 0.25  # what a KL reads on tokens that were not trained on, of what it reads on those that were
NAMES: tuple[str, ...] = tuple(name for name in Signals._fields if name not in ("kl_source", "lr_scale", "kl_lr"))

# What other programs call these; an unknown name is answered with the right one, never guessed into place.
_ELSEWHERE = {
    "approx_kl": "kl, with kl_source='in_loop'",
    "ppo_kl": "kl, with kl_source='in_loop'",
    "clipfrac": "clip_fraction",
    "reward": "task_reward",
    "rewards": "task_reward",
    "score": "task_reward",
    "non_score_reward": "kl_reward",
    "gradient_norm": "grad_norm",
    "lr": "nothing: the controller knows the lr",
}


def kl_on_target(target_kl: float, source: KLSource, lr_scale: float) -> float:
    """What `source` reads at a step that is just on target.

    Args:
        target_kl: the controller's, post-update k3, nats per token, at the peak of the user's schedule.
        source: how the KL of the step was measured.
        lr_scale: multiplier of the user's schedule at the step: where it is s, the KL is meant to be s^2 of the target.
    """
    return target_kl * kl_scale(source) * lr_scale**2


@cache
def kl_scale(source: KLSource) -> float:
    """What `source` reads where the post-update k3 reads 1."""
    counted = _COUNTED.fullmatch(source)
    if not counted:
        return KL_SCALE[source]
    return in_loop_scale(int(counted[2]), int(counted[3])) if counted[1] == "in_loop" else KL_SCALE[counted[1]]


@cache
def updates_of(source: KLSource) -> int:
    """How many updates the step made, by its source; 0 where that does not say."""
    counted = _COUNTED.fullmatch(source)
    return int(counted[2]) * int(counted[3]) if counted else 0


def in_loop_scale(epochs: int, mini_batches: int) -> float:
    """The mean KL before each of a step's updates, as a share of the KL after the last of them.

    Update i = 0, 1, ... sees what the i before it did. They go one way, so that the KL grows as i^2; and in the first
    epoch it is read on tokens that none of them was trained on, where it is about a quarter. Measured in the stability
    study's runs, at 1x2, 1x4, 1x8, 4x2: see docs/signals.md.
    """
    updates = epochs * mini_batches
    square = (2 * updates - 1) * (updates - 1) / 6  # the mean of i^2
    fresh = (2 * mini_batches - 1) * (mini_batches - 1) / 6 / epochs  # the first epoch's part of it
    return (square - (1.0 - _FRESH) * fresh) / updates**2


def check_name(name: str) -> None:
    """Raise TypeError naming the nearest known signal if `name` is not one."""
    if name in NAMES:
        return
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
    hint = _ELSEWHERE.get(name) or (near[0] if near else None)
    meant = f" Did you mean {hint}?" if hint else ""
    raise TypeError(f"unknown signal {name!r}.{meant} Known signals: {', '.join(NAMES)}.")


def is_source(source: object) -> bool:
    """Whether it is a way of measuring the KL that `kl_scale` knows."""
    if not isinstance(source, str) or source == _BEFORE_ALL:
        return False
    return source in KL_SOURCES or _COUNTED.fullmatch(source) is not None


def check_source(source: str) -> None:
    """Raise ValueError if `source` is no way of measuring the KL that we know."""
    if source == _BEFORE_ALL:
        raise ValueError(
            f"kl_source={source!r}: before the only update there is no KL yet. Measure it after the update."
        )
    if not is_source(source):
        known = f"{', '.join(KL_SOURCES)}, or in_loop:4x2 for 4 epochs of 2 mini-batches (post_update:4x2 likewise)"
        raise ValueError(f"kl_source={source!r} is unknown: use one of {known}.")
