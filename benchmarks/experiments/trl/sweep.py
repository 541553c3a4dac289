"""What is run: every arm at a peak lr that ruins the plain run and at one that it bears, for each trainer and seed."""

from __future__ import annotations

from typing import Any

STEPS = 120
SEEDS = (0, 1, 2)  # seeds from 100 on are for trying things out: the peaks and the steps were chosen on seed 100
RUINOUS = {"GRPO": 3e-2, "RLOO": 3e-2}
SAFE = {"GRPO": 3e-3, "RLOO": 3e-3}

ADAPTIVE = "adaptive"
FIXED = {"ratio 0": 0.0, "ratio 0.03": 0.03, "ratio 0.1": 0.1, "ratio 0.285": 0.285, "ratio 0.95": 0.95}
ARMS = (ADAPTIVE, *FIXED)
NOMINAL = 0.285  # of the steps: the nominal warmup of the adaptive arm


def cells() -> list[dict[str, Any]]:
    """All runs; seeds change slowest, so that what is done first is a small whole table."""
    return [
        {"trainer": trainer, "arm": arm, "lr": lrs[trainer], "seed": seed}
        for seed in SEEDS
        for trainer in RUINOUS
        for lrs in (RUINOUS, SAFE)
        for arm in ARMS
    ]
