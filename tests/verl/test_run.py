"""verl's own command on CPU: Ray, a driver, two workers, actor and critic; five steps, and two of them again.

Rollouts are drawn at random (`on_cpu.py` says why). All else is verl's.
"""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import PEAK, make_model, make_prompts, run

from adaptive_warmup.history import Run, read, replay

pytestmark = pytest.mark.skipif("VERL_RUN" not in os.environ, reason="not yet seen to pass: VERL_RUN=1 runs it")

STEPS, SAVED, UPDATES = 5, 3, 2
SAID = {
    "trainer.v1.trainer_mode": "adaptive_warmup",
    "+adaptive_warmup.actor.warmup_steps": 4,
    "+adaptive_warmup.actor.target_kl": 0.0005,
    "+adaptive_warmup.critic.warmup_steps": 3,
    "+adaptive_warmup.log": "run.jsonl",
    "+adaptive_warmup.kl_sequences": 4,
    "trainer.total_training_steps": STEPS,
    "trainer.save_freq": 1,
}
OURS = ("adaptive_warmup/", "actor/", "critic/")
LOG = "output.txt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("verl")
    make_model(made / "model")
    make_prompts(made / "prompts.jsonl")
    return made


@pytest.fixture(scope="module")
def whole(folder: Path) -> list[dict[str, Any]]:
    return run(folder, folder / "whole", **SAID)


@pytest.fixture(scope="module")
def log(folder: Path, whole: list[dict[str, Any]]) -> Run:
    return read(folder / "whole" / "run.jsonl")


@pytest.fixture(scope="module")
def resumed(folder: Path, whole: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """From the third step's checkpoint, in new processes."""
    out = folder / "resumed"
    name = f"checkpoints/global_step_{SAVED}"
    shutil.copytree(folder / "whole" / name, out / name)
    (out / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(SAVED))
    return run(folder, out, **SAID)


def moved(folder: Path, model: str, step: int, rank: int) -> float:
    """How far the weights of a worker's share went in a step, at most: so many updates, each by the lr."""

    def weights(at: int) -> dict[str, torch.Tensor]:
        path = folder / "whole" / "checkpoints" / f"global_step_{at}" / model / f"model_world_size_2_rank_{rank}.pt"
        return {name: value.to_local() for name, value in torch.load(path, weights_only=False).items()}

    before, after = weights(step - 1), weights(step)
    return max(float((after[name] - before[name]).abs().max()) for name in after if after[name].numel())


def test_the_first_step_is_not_lost_and_the_ramp_is_the_nominal_one(whole: list[dict[str, Any]]) -> None:
    assert [step["adaptive_warmup/nominal"] for step in whole] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert whole[0]["adaptive_warmup/factor"] == 0.25
    assert whole[0]["adaptive_warmup/lr"] == pytest.approx(0.25 * PEAK)


def test_the_controller_reacts(whole: list[dict[str, Any]], log: Run) -> None:
    factors = [step["adaptive_warmup/factor"] for step in whole]
    assert factors[-1] < 1.0, "the target is far below what these steps move the policy by"
    assert [factors[0], *(step["next"] for step in log.steps)][:STEPS] == factors
    assert [decision.factor for decision in replay(log)] == [step["next"] for step in log.steps]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("model", "key"), [("actor", "adaptive_warmup/lr"), ("critic", "adaptive_warmup/critic/lr")])
def test_every_worker_used_the_lr_that_was_decided(
    folder: Path, whole: list[dict[str, Any]], model: str, key: str, rank: int
) -> None:
    for step in range(2, STEPS + 1):
        assert moved(folder, model, step, rank) == pytest.approx(UPDATES * whole[step - 1][key], rel=5e-3)


def test_what_verl_logs_as_the_lr_is_that_of_the_next_step(whole: list[dict[str, Any]]) -> None:
    for step, following in pairwise(whole):
        assert step["actor/lr"] == pytest.approx(following["adaptive_warmup/lr"])
        assert step["critic/lr"] == pytest.approx(following["adaptive_warmup/critic/lr"])


def test_the_reward_is_the_one_that_verl_logs_later(whole: list[dict[str, Any]], log: Run) -> None:
    for step, logged in zip(log.steps, whole, strict=True):
        assert step["signals"]["task_reward"] == pytest.approx(logged["critic/score/mean"])


def test_the_kl_is_that_of_all_the_updates(whole: list[dict[str, Any]], log: Run) -> None:
    """verl's own is read before each of the two updates, so it has seen the first one only, in half of its mean."""
    for step, logged in zip(log.steps, whole, strict=True):
        assert step["signals"].get("kl_source", "post_update") == "post_update"
        assert step["signals"]["kl"] > abs(logged["actor/ppo_kl"])


def test_it_resumes_to_the_bit(whole: list[dict[str, Any]], resumed: list[dict[str, Any]]) -> None:
    assert len(resumed) == STEPS - SAVED
    for step, again in zip(whole[SAVED:], resumed, strict=True):
        names = [name for name in step if name.startswith(OURS)]
        assert {name: again[name] for name in names} == {name: step[name] for name in names}


def test_the_log_of_the_resumed_run_begins_with_the_step(folder: Path, resumed: list[dict[str, Any]], log: Run) -> None:
    again = read(folder / "resumed" / "run.jsonl")
    assert [step["next"] for step in again.steps] == [step["next"] for step in log.steps[SAVED:]]


@pytest.mark.parametrize(
    ("option", "words"),
    [({"+adaptive_warmup.actor.warmup": 4}, "unknown setting 'warmup'")],
)
def test_a_bad_option_ends_the_run_at_once_with_one_clear_error(
    folder: Path, option: dict[str, Any], words: str
) -> None:
    out = folder / "bad"
    with pytest.raises(AssertionError):
        run(folder, out, **(SAID | option))
    assert words in (out / LOG).read_text()
