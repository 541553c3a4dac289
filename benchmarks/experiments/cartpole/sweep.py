"""What is run: data. The same network, rollouts and updates under both hosts; 24 rollouts a run."""

from __future__ import annotations

from typing import NamedTuple

ROLLOUTS = 24
ENVIRONMENTS, STEPS = 8, 256  # a rollout
EPOCHS, MINIBATCH = 4, 256  # 32 updates on it
WARMUP = 6  # nominal, in rollouts: a quarter of the run
TARGET_KL = 0.02  # what the docs advise for control tasks, throughout; nats per action, k3 after the last update
WIDTHS = (64, 64)
SEEDS = (0, 1, 2)
SAFE, PAST = 3e-3, 1e-1  # peak lrs: one that the plain run bears, one that breaks it


class Arm(NamedTuple):
    """One way to set the lr: its first value as a share of the peak, and where it is run."""

    name: str
    start: float
    hosts: tuple[str, ...] = ("sb3", "torchrl")
    lrs: tuple[float, ...] = (PAST, SAFE)


ARMS = (
    Arm("plain", 1.0),
    Arm("adaptive", 1 / WARMUP),
    Arm("KLAdaptiveLR", 1.0, ("torchrl",), (PAST,)),
    Arm("KLAdaptiveLR, low start", 1 / WARMUP, ("torchrl",), (PAST,)),
)


class Run(NamedTuple):
    """One run."""

    host: str
    arm: Arm
    lr: float
    seed: int


def runs(host: str, seeds: tuple[int, ...] = SEEDS, lrs: tuple[float, ...] = (PAST, SAFE)) -> list[Run]:
    """All runs under `host`."""
    arms = [arm for arm in ARMS if host in arm.hosts]
    return [Run(host, arm, lr, seed) for lr in lrs for seed in seeds for arm in arms if lr in arm.lrs]
