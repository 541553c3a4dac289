"""`PPOTrainer` is PPO: what it learns, and that it learns the same however the work is cut."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback
from transformers.activations import NewGELUActivation

from adaptive_warmup.integrations.ppo_trainer import PPOTrainer
from adaptive_warmup.ppo import METRICS, PPO, Problem, ValueHead
from adaptive_warmup.ppo import PPOConfig as Algorithm
from tests.integrations.ppo_trainers import PROMPTS, Letters, close, make
from tests.integrations.tiny import CHECKPOINTING, logged, low_bytes, model, tokenizer
from tests.integrations.trainers import same, weights

TURNS: dict[str, Any] = {"max_completion_length": 12, "per_device_train_batch_size": 16}


def test_the_score_rises(tmp_path: Path) -> None:
    trainer = make(tmp_path, max_steps=40, per_device_train_batch_size=32, num_ppo_epochs=2, learning_rate=3e-2)
    trainer.train()
    scores = logged(trainer, "objective/scores")
    assert len(scores) == 20
    assert sum(scores[:3]) / 3 < 0.6
    assert sum(scores[-3:]) / 3 > 0.75


def test_it_computes_what_the_plain_loop_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Letters()
    trainer = make(
        tmp_path,
        parts={"environment": task},
        max_steps=6,
        num_mini_batches=2,
        vf_coef=1.0,
        max_grad_norm=0.5,
        max_completion_length=12,
    )
    rows = list(trainer._get_train_sampler())
    rollouts = iter([rows[start : start + 16] for start in (0, 32, 64)])  # each is there for both of its updates
    task.sample = lambda *_: [Problem(PROMPTS[i]["prompt"], None) for i in next(rollouts)]  # type: ignore[method-assign]
    orders = [torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for module in ("integrations.ppo_trainer.rl_step", "ppo.loop"):
        each = iter(orders)
        monkeypatch.setattr(f"adaptive_warmup.{module}.mini_batches", lambda *_, each=each: next(each).chunk(2))
    config = Algorithm(
        batch_size=16, mini_batches=2, learning_rate=1e-2, value_learning_rate=1e-2, value_clip_range=0.2, kl_coef=0.05,
        lam=0.95, max_grad_norm=0.5, weight_decay=0.0, max_response_tokens=12, seed=trainer.args.seed,
    )  # fmt: skip
    policy = model()
    theirs = list(PPO(config, policy, copy.deepcopy(policy), task, tokenizer()).run(3, progress=False))
    trainer.train()
    for name in METRICS.keys() - {"lr", "value_lr"}:
        assert logged(trainer, name) == pytest.approx([step[name] for step in theirs], rel=1e-3, abs=1e-5), name
    assert close(weights(trainer)[:3], list(policy.state_dict().values())[:3], atol=1e-4)


@pytest.mark.parametrize("pieces", [2, 8])
def test_accumulated_gradients_are_those_of_the_large_batch(tmp_path: Path, pieces: int) -> None:
    """Episodes differ in length, so that a mean of the pieces' means would be another number."""

    def trained(**arguments: Any) -> PPOTrainer:
        made = make(
            tmp_path, parts={"environment": Letters()}, max_steps=3, max_completion_length=12, optim="sgd",
            learning_rate=0.5, value_learning_rate=0.5, **arguments,
        )  # fmt: skip
        made.train()
        return made

    whole = trained(per_device_train_batch_size=16)
    cut = trained(per_device_train_batch_size=16 // pieces, gradient_accumulation_steps=pieces)
    assert not close(weights(whole), weights(make(tmp_path)), atol=1e-3)
    assert close(weights(cut), weights(whole), atol=1e-5)
    for name in ("loss", "grad_norm", "policy/entropy_avg", "loss/value_avg", "policy/kl"):
        assert logged(cut, name) == pytest.approx(logged(whole, name), rel=1e-3, abs=1e-6), name


def test_checkpointed_activations_change_nothing(tmp_path: Path) -> None:
    plain, spared = make(tmp_path), make(tmp_path, **{CHECKPOINTING: True})
    for trainer in (plain, spared):
        trainer.train()
    assert all(getattr(it, f"is_{CHECKPOINTING}") for it in (spared.model.policy, spared.model.critic.backbone))
    assert close(weights(spared), weights(plain), atol=1e-6)


def test_bf16_starts_from_the_ratio_one(tmp_path: Path) -> None:
    trainer = make(tmp_path, bf16=True, max_steps=4)
    trainer.train()
    assert logged(trainer, "val/ratio")[0] == pytest.approx(1.0, abs=1e-6)  # sampled in bf16 it would be off by 1e-2
    assert logged(trainer, "policy/kl")[0] > 1e-5
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss"))
    assert next(trainer.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("value_model", ["own", "shared"])
def test_an_environment_with_turns(tmp_path: Path, value_model: str) -> None:
    task = Letters()
    parts = {"environment": task, "value_model": ValueHead(16) if value_model == "shared" else None}
    trainer = make(tmp_path, parts=parts, max_steps=3, **TURNS)
    trainer.train()
    assert set(task.answers) <= set(PROMPTS["answer"])
    assert len(task.answers) > 10
    assert max(logged(trainer, "response_length")) < 12 - 1  # of the inserted tokens none is counted
    assert abs(logged(trainer, "policy/reference_kl")[0]) < 1e-6


def test_problems_of_an_environment_are_a_dataset(tmp_path: Path) -> None:
    task = Letters()
    trainer = make(tmp_path, parts={"environment": task, "train_dataset": task.sample(20, 0)}, max_steps=1, **TURNS)
    trainer.train()
    assert set(task.answers) <= {str(i) for i in range(20)}


def test_a_gelu_that_is_written_out_is_computed_in_one_pass(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=len(tokenizer()), n_embd=16, n_layer=2, n_head=2, n_positions=32)
    policy, ids = GPT2LMHeadModel(config), torch.arange(24).view(2, 12)
    before = policy.eval()(ids).logits
    trainer = make(tmp_path, policy)
    models = trainer.model.policy, trainer.reference, trainer.model.critic
    assert not [part for model in models for part in model.modules() if isinstance(part, NewGELUActivation)]
    assert trainer.model.policy(ids).logits.allclose(before, atol=1e-6)
    trainer.save_model()
    assert isinstance(GPT2LMHeadModel.from_pretrained(tmp_path).transformer.h[0].mlp.act, NewGELUActivation)


def test_policy_and_critic_have_an_lr_each(tmp_path: Path) -> None:
    for still, moved, rates in (("policy", "critic", (0.0, 1e-2)), ("critic", "policy", (1e-2, 0.0))):
        trainer = make(tmp_path, learning_rate=rates[0], value_learning_rate=rates[1])
        before = copy.deepcopy(trainer.model)
        trainer.train()
        parts = {name: list(getattr(before, name).parameters()) for name in (still, moved)}
        assert same(list(getattr(trainer.model, still).parameters()), parts[still])
        assert not same(list(getattr(trainer.model, moved).parameters()), parts[moved])
        assert logged(trainer, "value_lr") == [rates[1]] * 2


def test_a_score_that_is_not_a_number_costs_one_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    class Looks(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append(weights(trainer))

    def broken(completion_ids: Any, trainer_state: Any, **_: Any) -> list[float]:
        return [math.nan, *[1.0] * 7] if trainer_state.global_step == 1 else low_bytes(completion_ids)

    trainer = make(tmp_path, parts={"reward_funcs": broken, "callbacks": [Looks()]}, max_steps=3)
    trainer.train()
    assert same(seen[1], seen[0])
    assert not same(seen[2], seen[1])
    assert logged(trainer, "skipped_updates") == [0.0, 1.0, 0.0]
    assert "the reward function broken gave nan for 1 of 8 completions: no update is made with them" in caplog.text


def test_rewards_whitened_have_variance_one(tmp_path: Path) -> None:
    trainer = make(tmp_path, parts={"reward_funcs": lambda completions, **_: [100.0, -100.0] * 4}, whiten_rewards=True)
    trainer.train()
    assert logged(trainer, "loss/value_avg")[0] < 20  # unscaled it would be some 100 ** 2 / 2
