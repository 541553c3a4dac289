"""What is run: every arm at every peak lr and seed."""

from __future__ import annotations

from typing import Any

STEPS = 300
LRS = (3e-3, 1e-2, 3e-2, 1e-1)
SEEDS = (0, 1, 2)  # seeds from 100 on are for trying things out

ADAPTIVE, RADAM = "adaptive", "RAdam"
MATCHED = "ratio 0.03, same mean lr"  # at the peak lr that gives it the mean lr of the adaptive run beside it
FIXED = {"ratio 0": 0.0, "ratio 0.03": 0.03, "ratio 0.1": 0.1, "ratio 0.3": 0.3, "ratio 0.95": 0.95, MATCHED: 0.03}
ARMS = (ADAPTIVE, *FIXED, RADAM)


def cells() -> list[dict[str, Any]]:
    """All runs, the adaptive ones before those that depend on them."""
    return [{"arm": arm, "lr": lr, "seed": seed} for seed in SEEDS for lr in LRS for arm in ARMS]
