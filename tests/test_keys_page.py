"""The docs' table of keys is the one that the code goes by."""

from __future__ import annotations

import importlib
from pathlib import Path

from adaptive_warmup.readers import keys_page

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / keys_page.PAGE).read_text(encoding="utf-8")


def test_the_page_is_the_table() -> None:
    assert keys_page.page() == TEXT, "run `python -m adaptive_warmup.readers.keys_page`"


def test_what_it_says_of_two_trainers() -> None:
    kl_reward = "mean over sequences of the sum over a sequence, signed, in units of reward, k1"
    assert f"| RLOOTrainer | `-beta * kl * completions/mean_length`, **derived** | `kl_reward` | {kl_reward} |" in TEXT
    against = "k3 against the reference (beta not 0), nats per response token, no sign"
    assert f"| GRPOTrainer | `kl` | `reference_kl` | {against} |" in TEXT
    assert "| RewardTrainer | none of its own |  |  |" in TEXT


def test_the_trainers_are_those_of_trl() -> None:
    names = {line.split("|")[1].split()[0] for line in TEXT.splitlines() if line.split("|")[1:2] and "Trainer" in line}
    stable = {name for name in names if name.endswith("Trainer")} - {
        "OnlineDPOTrainer",
        "AsyncGRPOTrainer",
        "PPOTrainer",
    }
    trl = importlib.import_module("trl")
    assert all(hasattr(trl, name) for name in stable)
    assert stable == {f"{kind}Trainer" for kind in ("SFT", "Reward", "DPO", "KTO", "RLOO", "GRPO")}
