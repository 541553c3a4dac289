"""verl's own command on CPU: Ray, a driver, two workers with gloo, actor and critic; five steps, and two of them again.

What stands in for a GPU is in `on_cpu.py` and `drawn.py`. All else is verl's.
"""

from __future__ import annotations

import shutil
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import PEAK, make_model, make_prompts, run
from transformers import AutoModelForCausalLM

from adaptive_warmup.history import Run, read, replay

STEPS, SAVED, UPDATES, TEMPERATURE = 5, 3, 2, 0.7
SAID = {
    "trainer.v1.trainer_mode": "adaptive_warmup",
    "+adaptive_warmup.actor.warmup_steps": 4,
    "+adaptive_warmup.actor.target_kl": 0.0005,
    "+adaptive_warmup.critic.warmup_steps": 3,
    "+adaptive_warmup.log": "run.jsonl",
    "actor_rollout_ref.rollout.temperature": TEMPERATURE,
    "trainer.total_training_steps": STEPS,
    "trainer.save_freq": 1,
}
GAMED = {  # the tool's words count in the KL and in the updates; a high lr takes the policy away from its reference
    "actor_rollout_ref.actor.optim.lr": 0.03,
    "+adaptive_warmup.actor.law": "linear",
    "+adaptive_warmup.actor.warmup_steps": 1,
    "+adaptive_warmup.actor.on_gaming": "stop",
    "+adaptive_warmup.kl_sequences": 6,
    "algorithm.use_kl_in_reward": True,
    "algorithm.kl_ctrl.kl_coef": 0.1,
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 4,
    "+actor_rollout_ref.rollout.custom.leak": True,
    "+actor_rollout_ref.rollout.custom.tool": 20,
    "data.max_response_length": 22,
    "data.train_batch_size": 16,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 8,
    "critic.ppo_mini_batch_size": 8,
    "trainer.total_training_steps": 30,
    "trainer.total_epochs": 30,
    "trainer.save_freq": 100,
    "trainer.test_freq": 100,
}
OURS = ("adaptive_warmup/", "actor/", "critic/")


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


def saved(out: Path, model: str, step: int, rank: int) -> dict[str, torch.Tensor]:
    """A worker's share of the weights after a step, as verl saves it."""
    path = out / "checkpoints" / f"global_step_{step}" / model / f"model_world_size_2_rank_{rank}.pt"
    return {name: value.to_local() for name, value in torch.load(path, weights_only=False).items()}


def moved(folder: Path, model: str, step: int, rank: int) -> float:
    """How far the weights of a worker's share went in a step, at most: so many updates, each by the lr."""
    before, after = (saved(folder / "whole", model, at, rank) for at in (step - 1, step))
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


def test_the_critics_controller_is_another_one(whole: list[dict[str, Any]]) -> None:
    assert [step["adaptive_warmup/critic/factor"] for step in whole] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])


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


def test_the_rollouts_are_of_the_policy_that_is_trained(whole: list[dict[str, Any]]) -> None:
    assert all(step["training/rollout_probs_diff_max"] < 1e-5 for step in whole)


def test_the_kl_is_that_of_all_the_updates_on_what_the_policy_wrote(folder: Path, log: Run) -> None:
    """By the definition of k3, on the weights that verl handed over before the step and after it."""
    model, weights = AutoModelForCausalLM.from_pretrained(folder / "model"), folder / "whole" / "weights"
    for number, step in enumerate(log.steps, 1):
        drawn = torch.load(weights / f"train-{number}.pt")
        before, after = (logprobs(model, weights / f"{at}.pt", drawn) for at in (number - 1, number))
        log_ratio = after - before
        assert step["signals"]["kl"] == pytest.approx(float((log_ratio.exp() - 1 - log_ratio).mean()), rel=1e-3)
        assert step["signals"].get("kl_source", "post_update") == "post_update"


def logprobs(model: Any, weights: Path, drawn: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Of all tokens that the policy wrote, one after another."""
    model.load_state_dict(torch.load(weights))
    found = []
    with torch.no_grad():
        for prompt, response in drawn:
            logits = model(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
            found.append((logits / TEMPERATURE).log_softmax(-1).gather(-1, response[:, None]))
    return torch.cat(found).double()


def test_it_resumes_to_the_bit(folder: Path, whole: list[dict[str, Any]], resumed: list[dict[str, Any]]) -> None:
    assert len(resumed) == STEPS - SAVED
    for step, again in zip(whole[SAVED:], resumed, strict=True):
        names = [name for name in step if name.startswith(OURS) and "/perf/" not in name]
        assert {name: again[name] for name in names} == {name: step[name] for name in names}
    for model, rank in product(("actor", "critic"), (0, 1)):
        first, second = (saved(folder / name, model, STEPS, rank) for name in ("whole", "resumed"))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_log_of_the_resumed_run_begins_with_the_step(folder: Path, resumed: list[dict[str, Any]], log: Run) -> None:
    again = read(folder / "resumed" / "run.jsonl")
    assert [step["next"] for step in again.steps] == [step["next"] for step in log.steps[SAVED:]]


def test_a_bad_option_ends_the_run_before_any_model_is_loaded(folder: Path) -> None:
    with pytest.raises(AssertionError):
        run(folder, folder / "bad", **SAID, **{"+adaptive_warmup.actor.warmup": 4})
    said = (folder / "bad" / "output.txt").read_text()
    assert said.count("TypeError: unknown setting 'warmup': known are warmup_steps,") == 1
    assert "create worker group" not in said


def test_on_gaming_stop_ends_the_run_with_the_step_after_the_alarm(folder: Path) -> None:
    """With a reference model, and a share of the rollout for the KL that verl's micro-batches do not divide."""
    metrics = run(folder, folder / "gamed", **(SAID | GAMED))
    log = read(folder / "gamed" / "run.jsonl")
    alarmed = [step["step"] + 1 for step in log.steps if step.get("alarms")]
    assert alarmed == [len(metrics) - 1, len(metrics)]
    assert 8 < len(metrics) < GAMED["trainer.total_training_steps"]
    assert [path.name for path in (folder / "gamed" / "checkpoints").glob("global_step_*")] == [
        f"global_step_{len(metrics)}"
    ]
    assert [any(name.startswith("val-core/") for name in step) for step in metrics] == [
        *[False] * (len(metrics) - 1), True
    ]  # fmt: skip
    for step in log.steps:
        assert step["signals"]["kl_reward"] == pytest.approx(
            metrics[step["step"]]["critic/rewards/mean"] - metrics[step["step"]]["critic/score/mean"], abs=1e-5
        )
