"""The examples run as a user starts them, and the controller decides in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from adaptive_warmup.history import Run
from adaptive_warmup.history import read as read_log
from adaptive_warmup.readers import read

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


class Done(NamedTuple):
    said: str
    state: Path

    def logged(self, name: str) -> list[float]:
        history = json.loads(self.state.read_text())["log_history"]
        return [logs[name] for logs in history if "loss" in logs and name in logs]


def run(name: str, folder: Path, *options: Any) -> Done:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(EXAMPLES / name), "--out", str(folder), *map(str, options)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return Done(done.stdout, folder / "trainer_state.json")


def test_these_are_all() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")} - {"common.py"}
    assert scripts == {"grpo.py", "ppo.py", "ppo_lora.py", "rloo.py", "sft.py"}


def test_grpo_finds_its_ceiling(tmp_path: Path) -> None:
    done = run("grpo.py", tmp_path, "--steps", 24)
    factors, nominal = done.logged("adaptive_warmup/factor"), done.logged("adaptive_warmup/nominal")
    assert len(factors) == 24
    lrs = done.logged("learning_rate")
    assert all(lr <= 0.02 * factor * (1 + 1e-6) for lr, factor in zip(lrs, factors, strict=True))  # less where cut
    assert nominal[-1] == 1.0
    assert factors[-1] < 0.9  # the nominal warmup is over, and the run does not bear the peak
    assert max(done.logged("adaptive_warmup/ceiling")[1:]) < 1.0
    assert {2.0, 3.0} & set(done.logged("adaptive_warmup/phase"))  # backing off, at the ceiling
    assert "task_reward (reward)" in done.said
    assert_measured(tmp_path, "probe")


def test_rloo_has_its_kl_reward_and_finds_its_ceiling(tmp_path: Path) -> None:
    done = run("rloo.py", tmp_path, "--steps", 24, "--lr", 0.04)
    assert "kl_reward (derived: -beta * kl * completions/mean_length)" in done.said
    factors = done.logged("adaptive_warmup/factor")
    assert factors[-1] < 0.9
    past = read(done.state).past
    assert {"task_reward", "grad_norm", "lr"} <= past.columns.keys()
    log = assert_measured(tmp_path, "probe")
    assert all(step["signals"]["kl_reward"] <= 1e-3 for step in log.steps[:4])


def test_sft_finds_its_ceiling(tmp_path: Path) -> None:
    done = run("sft.py", tmp_path, "--steps", 40, "--lr", 0.04)
    factors, nominal = done.logged("adaptive_warmup/factor"), done.logged("adaptive_warmup/nominal")
    lrs = done.logged("learning_rate")
    cuts = [lr / (0.04 * factor) for lr, factor in zip(lrs, factors, strict=True)]  # the warmup is the whole run here
    assert max(cuts) == pytest.approx(1.0)
    assert factors[-1] < nominal[-1] - 0.01
    assert_measured(tmp_path, "training_probe")


@pytest.mark.parametrize(("name", "lr"), [("ppo.py", 0.1), ("ppo_lora.py", 1.0)])
def test_ppo_finds_its_ceiling_on_the_kl_that_it_reports(tmp_path: Path, name: str, lr: float) -> None:
    done = run(name, tmp_path, "--steps", 24, "--lr", lr)
    factors = done.logged("adaptive_warmup/factor")
    assert factors[-1] < 0.9
    assert "kl (policy/kl)" in done.said
    assert "kl_reward (objective/non_score_reward)" in done.said
    log = assert_measured(tmp_path, "post_update")
    assert len(log.steps) == (12 if name == "ppo.py" else 24)  # RL steps


def assert_measured(folder: Path, source: str) -> Run:
    """The decision log has KLs of the probe, and decisions that follow from them."""
    log = read_log(folder / "decisions.jsonl")
    measured = [step for step in log.steps if "kl" in step["signals"]]
    assert measured
    assert {step["signals"].get("kl_source", "post_update") for step in measured} == {source}
    assert all("x the target" in " ".join(step["reasons"]) for step in measured)
    return log
