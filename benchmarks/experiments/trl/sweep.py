"""What is run: every arm at peak lrs that ruin the plain run and at one that it bears, for each trainer and seed."""

from __future__ import annotations

from typing import Any

STEPS = 120
SEEDS = (0, 1, 2)  # seeds from 100 on are for trying things out: peaks and steps were chosen on seed 100, but for one
# GRPO's .1 was run when the .03 of seed 100 did not ruin every warmup here.
RUINOUS = {"GRPO": (3e-2, 1e-1), "RLOO": (3e-2,), "PPO": (1e-1,)}
SAFE = {"GRPO": 3e-3, "RLOO": 3e-3, "PPO": 3e-3}

ADAPTIVE = "adaptive"
FIXED = {"ratio 0": 0.0, "ratio 0.03": 0.03, "ratio 0.1": 0.1, "ratio 0.285": 0.285, "ratio 0.95": 0.95}
ARMS = (ADAPTIVE, *FIXED)
NOMINAL = 0.285  # of the steps: the nominal warmup of the adaptive arm


def cells() -> list[dict[str, Any]]:
    """All runs; seeds change slowest, so that what is done first is a small whole table."""
    return [
        {"trainer": trainer, "arm": arm, "lr": lr, "seed": seed}
        for seed in SEEDS
        for trainer in RUINOUS
        for lr in (*RUINOUS[trainer], SAFE[trainer])
        for arm in ARMS
    ]
