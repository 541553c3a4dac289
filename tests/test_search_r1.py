"""The ready configurations of Search-R1: its launch scripts' settings, and options that we take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from adaptive_warmup.advice.files import read_plan
from adaptive_warmup.integrations.verl.options import Options

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "search_r1"
# lr and nominal warmup of the actor, the same of the critic, RL steps: as its scripts have them
SETTINGS: dict[str, tuple[float, int, float | None, int | None, int]] = {
    "ppo_v0.1": (1e-6, 289, 1e-5, 15, 305),
    "ppo_v0.2": (1e-6, 286, 1e-5, 15, 1005),
    "ppo_v0.3": (1e-6, 286, 1e-5, 15, 1005),
    "grpo_v0.1": (1e-6, 289, None, None, 305),
    "grpo_v0.2": (1e-6, 286, None, None, 1005),
    "grpo_v0.3": (5e-7, 286, None, None, 1005),
}


def content(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return loaded


def test_there_is_one_for_each_launch_script() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_nominal_warmup_is_that_of_the_script(name: str) -> None:
    lr, warmup, critic_lr, critic_warmup, steps = SETTINGS[name]
    said = content(name)
    options = Options.of(said["adaptive_warmup"])
    optim = said["actor_rollout_ref"]["actor"]["optim"]
    assert said["trainer"]["total_training_steps"] == steps
    assert optim["lr"] == lr
    assert options.config("actor", optim | {"total_training_steps": steps}).warmup_steps == warmup
    if critic_lr is None:
        assert "critic" not in said
        assert said["algorithm"]["adv_estimator"] == "grpo"
    else:
        optim = said["critic"]["optim"]
        assert optim["lr"] == critic_lr
        assert options.config("critic", optim | {"total_training_steps": steps}).warmup_steps == critic_warmup


@pytest.mark.parametrize("name", SETTINGS)
def test_advise_reads_them(name: str) -> None:
    plan = read_plan(FOLDER / f"{name}.yaml")
    assert (plan.lr, plan.total_steps, plan.host) == (SETTINGS[name][0], SETTINGS[name][4], "verl")
    assert plan.kl_in == ("loss" if name.startswith("grpo") else "reward")
    assert plan.critic == name.startswith("ppo")


def test_the_page_shows_the_patch_and_the_settings() -> None:
    page = (ROOT / "docs" / "integrations" / "search-r1.md").read_text(encoding="utf-8")
    patch = (FOLDER / "adaptive_warmup.patch").read_text(encoding="utf-8")
    assert patch in page
    assert len(re.findall(r"^\+(?!\+\+)", patch, flags=re.MULTILINE)) == 7
    for name, (lr, warmup, _, critic_warmup, steps) in SETTINGS.items():
        row = next(line for line in page.splitlines() if line.startswith("|") and f"`{name}`" in line)
        cells = [cell.strip() for cell in row.split("|")[2:5]]
        assert cells[0] == f"{lr:.0e}".replace("e-0", "e-") + f", {warmup}"
        assert cells[1] == (f"1e-5, {critic_warmup}" if critic_warmup else "")
        assert cells[2] == str(steps)
