"""What the verl integration decides on its driver, without verl; with verl itself: tests/verl."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from adaptive_warmup.controller import Config
from adaptive_warmup.history import read
from adaptive_warmup.integrations.verl.options import Options
from adaptive_warmup.integrations.verl.vendored import Warmups, drive
from adaptive_warmup.integrations.verl.warmup import Warmup

OPTIM = {"lr": 1e-6, "lr_warmup_steps": -1, "lr_warmup_steps_ratio": 0.95, "total_training_steps": 305}
METRICS = {
    "actor/ppo_kl": 0.0005,
    "actor/pg_clipfrac": 0.01,
    "actor/grad_norm": 0.3,
    "actor/entropy": 1.2,
    "actor/pg_loss": -0.1,
    "actor/lr": 5e-7,
    "actor/reward_kl_penalty": 0.02,
    "critic/score/mean": 0.25,
    "critic/rewards/mean": 0.24,
    "critic/vf_explained_var": 0.5,
    "critic/grad_norm": 7.0,
    "critic/vf_loss": 0.9,
    "critic/lr": 1e-5,
}


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({"actors": {}}, TypeError, r"unknown option adaptive_warmup\.actors: known are actor, critic, log"),
        (3, TypeError, "adaptive_warmup=3: give options"),
        ({"actor": 100}, TypeError, r"adaptive_warmup\.actor=100: give settings, such as actor\.warmup_steps=100"),
        ({"actor": {"warmup": 100}}, TypeError, "unknown setting 'warmup'"),
        ({"critic": {"target_kl": -1.0}}, ValueError, r"target_kl=-1\.0"),
        ({"actor": {"warmup_steps": 0}}, ValueError, "warmup_steps=0"),
        ({"kl_sequences": -1}, ValueError, r"adaptive_warmup\.kl_sequences=-1"),
        ({"kl_sequences": True}, ValueError, "kl_sequences=True"),
        ({"log": 3}, TypeError, r"adaptive_warmup\.log=3"),
    ],
)
def test_bad_options_are_refused_with_what_to_do(said: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Options.of(said)


@pytest.mark.parametrize(
    ("said", "optim", "steps"),
    [
        ({}, {}, 289),  # int(.95 * 305)
        ({}, {"lr_warmup_steps": 40}, 40),
        ({}, {"lr_warmup_steps_ratio": 0.0}, 30),  # a tenth of the run
        ({"actor": {"warmup_steps": 7}}, {"lr_warmup_steps": 40}, 7),
    ],
)
def test_the_nominal_warmup_is_verls_own_unless_said_otherwise(
    said: dict[str, Any], optim: dict[str, Any], steps: int
) -> None:
    assert Options.of(said).config("actor", OPTIM | optim).warmup_steps == steps


def test_actor_and_critic_have_settings_of_their_own() -> None:
    options = Options.of({"actor": {"warmup_steps": 286, "target_kl": 0.004}, "critic": {"law": "linear"}})
    assert options.config("actor", OPTIM).target_kl == 0.004
    assert options.config("critic", OPTIM | {"lr_warmup_steps": 15}) == Config(15, law="linear")


def test_the_actor_is_told_what_verl_says_of_the_policy() -> None:
    warmup = Warmup("actor", Config(10, target_kl=0.01), peak=1e-6)
    figures = warmup.end_step(1e-6, METRICS)
    signals = warmup.regulator.signals
    assert signals is not None
    assert (signals.kl, signals.kl_source) == (0.0005, "in_loop")
    assert (signals.task_reward, signals.reference_kl, signals.explained_variance) == (0.25, 0.02, 0.5)
    assert signals.kl_reward == pytest.approx(-0.01)
    assert (signals.grad_norm, signals.entropy, signals.clip_fraction, signals.loss) == (0.3, 1.2, 0.01, -0.1)
    assert signals.lr_scale == 1.0
    assert figures["adaptive_warmup/factor"] == 0.1
    assert figures["adaptive_warmup/lr"] == pytest.approx(1e-7)


def test_a_kl_measured_after_the_updates_goes_before_the_one_in_the_loop() -> None:
    warmup = Warmup("actor", Config(10, target_kl=0.01), peak=1e-6)
    warmup.end_step(1e-6, METRICS, kl=0.004)
    assert warmup.regulator.signals is not None
    assert (warmup.regulator.signals.kl, warmup.regulator.signals.kl_source) == (0.004, "post_update")


def test_the_critic_is_told_of_itself_only_and_logged_under_its_name() -> None:
    warmup = Warmup("critic", Config(15), peak=1e-5)
    figures = warmup.end_step(1e-5, METRICS)
    signals = warmup.regulator.signals
    assert signals is not None
    assert (signals.grad_norm, signals.loss, signals.kl, signals.task_reward) == (7.0, 0.9, None, None)
    assert figures["adaptive_warmup/critic/factor"] == pytest.approx(1 / 15)
    assert not [name for name in figures if not name.startswith("adaptive_warmup/critic/")]


def test_what_is_broken_or_missing_holds_and_never_raises() -> None:
    warmup = Warmup("actor", Config(10, target_kl=0.01), peak=1e-6)
    warmup.end_step(1e-6, {})
    assert warmup.decision.factor == 0.2
    warmup.end_step(1e-6, METRICS | {"actor/grad_norm": math.nan})
    assert warmup.decision.factor <= 0.2
    assert [alarm.name for alarm in warmup.decision.alarms] == ["non_finite"]


def test_a_schedule_below_its_peak_is_told_to_the_controller() -> None:
    warmup = Warmup("actor", Config(1, target_kl=0.01), peak=1e-6)
    warmup.end_step(0.25e-6, METRICS)
    assert warmup.regulator.signals is not None
    assert warmup.regulator.signals.lr_scale == 0.25


def test_state_goes_through_json_and_the_log_goes_on(tmp_path: Path) -> None:
    def steps(warmup: Warmup, numbers: range) -> list[float]:
        factors = []
        for number in numbers:
            warmup.end_step(1e-6, METRICS, kl=0.01 * (1 + number % 3))
            factors.append(warmup.decision.factor)
        return factors

    whole = Warmup("actor", Config(8, target_kl=0.01), 1e-6)
    whole.begin(None, 0)
    expected = steps(whole, range(12))
    path = tmp_path / "run.jsonl"
    first = Warmup("actor", Config(8, target_kl=0.01), 1e-6, str(path))
    first.begin(None, 0)
    steps(first, range(5))
    saved = json.loads(json.dumps(first.regulator.state_dict()))
    second = Warmup("actor", Config(8, target_kl=0.01), 1e-6, str(path))
    second.begin(saved, 5)
    assert steps(second, range(5, 12)) == expected[5:]
    assert [step["next"] for step in read(path).steps] == expected


def test_a_checkpoint_without_our_state_goes_on_from_the_nominal_warmup() -> None:
    warmup = Warmup("actor", Config(10), 1e-6)
    warmup.begin(None, 4)
    assert warmup.decision.factor == 0.5


def verls_schedule(optimizer: torch.optim.Optimizer, num_warmup_steps: int) -> LambdaLR:
    """As the verl of Search-R1 makes it: from 0, a function within a function."""
    return LambdaLR(optimizer, lambda step: min(1.0, step / max(1, num_warmup_steps)))


def test_the_patched_search_r1() -> None:
    """Its worker's order: write the lrs, update, step its own schedule; its driver's: send, gather, decide, log."""
    config = {
        "adaptive_warmup": {"actor": {"target_kl": 0.01}, "kl_sequences": 0},
        "algorithm": {"adv_estimator": "gae"},
        "actor_rollout_ref": {"actor": {"optim": {"lr": 1.0, "lr_warmup_steps_ratio": 0.5, "total_training_steps": 8}}},
        "critic": {"optim": {"lr": 2.0, "lr_warmup_steps_ratio": 0.25, "total_training_steps": 8}},
    }
    warmups = Warmups(config)
    schedules = {
        role: verls_schedule(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr), ramp)
        for role, lr, ramp in (("actor", 1.0, 4), ("critic", 2.0, 2))
    }
    used: dict[str, list[float]] = {"actor": [], "critic": []}
    for _ in range(5):
        for role, schedule in schedules.items():
            drive(schedule, warmups.factors[role])
            used[role].append(schedule.optimizer.param_groups[0]["lr"])
            schedule.optimizer.step()
            schedule.step()
        logged = warmups.end_step({"actor/lr": 0.0, "critic/lr": 0.0})
    assert used == {"actor": [0.25, 0.5, 0.75, 1.0, 1.0], "critic": [1.0, 2.0, 2.0, 2.0, 2.0]}, "neither 0 nor doubled"
    assert (logged["actor/lr"], logged["critic/lr"]) == (1.0, 2.0)


def test_the_patched_search_r1_leaves_a_critic_alone_that_is_not_there() -> None:
    optim = {"lr": 1.0, "lr_warmup_steps_ratio": 0.5, "total_training_steps": 8}
    warmups = Warmups({"algorithm": {"adv_estimator": "grpo"}, "actor_rollout_ref": {"actor": {"optim": optim}}})
    assert warmups.factors == {"actor": 0.25}
    assert warmups.end_step({"critic/score/mean": 0.1}) == {}, "the actor was not updated"
    assert warmups.factors == {"actor": 0.25}
