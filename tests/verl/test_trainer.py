"""The driver's trainer as verl makes it from its configuration, before there are workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf, open_dict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from adaptive_warmup.integrations.verl.carried import FACTOR, SCHEDULED
from adaptive_warmup.integrations.verl.rollouts import _share


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_module("verl.trainer.config", version_base=None):
        yield


def configured(*options: str) -> DictConfig:
    return compose("ppo_trainer", ["actor_rollout_ref.rollout.name=vllm", "trainer.resume_mode=disable", *options])


def made(*options: str) -> Any:
    """The trainer, brought as far as `init` does once it knows the length of the run."""
    config = configured("trainer.v1.trainer_mode=adaptive_warmup", *options)
    trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config)
    with open_dict(config):
        for model in (config.actor_rollout_ref.actor, config.critic):
            model.optim.total_training_steps = 305
    trainer._load_checkpoint()
    return trainer


def test_to_verl_it_is_its_synchronous_trainer() -> None:
    trainer = made()
    assert trainer.trainer_mode == "sync"
    assert type(trainer.replay_buffer) is ReplayBuffer, "other modes have another one"


def test_actor_and_critic_have_verls_warmups_by_default() -> None:
    trainer = made(
        "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.95", "critic.optim.lr_warmup_steps_ratio=0.05"
    )
    steps = {role: warmup.regulator.config.warmup_steps for role, warmup in trainer._warmups.items()}
    assert steps == {"actor": 289, "critic": 15}


def test_options_come_from_the_command_line() -> None:
    trainer = made(
        "+adaptive_warmup.actor.warmup_steps=7",
        "+adaptive_warmup.actor.target_kl=4e-3",
        "+adaptive_warmup.critic.law=linear",
        "+adaptive_warmup.kl_sequences=0",
    )
    actor, critic = (trainer._warmups[role].regulator.config for role in ("actor", "critic"))
    assert (actor.warmup_steps, actor.target_kl, critic.law) == (7, 0.004, "linear")


def test_without_a_critic_there_is_one_controller() -> None:
    assert list(made("algorithm.adv_estimator=grpo")._warmups) == ["actor"]


@pytest.mark.parametrize(
    ("option", "error", "words"),
    [
        ("+adaptive_warmup.actor.warmup=7", TypeError, "unknown setting 'warmup'"),
        ("+adaptive_warmup.steps=7", TypeError, r"unknown option adaptive_warmup\.steps"),
        ("+adaptive_warmup=7", TypeError, "adaptive_warmup=7: give options"),
        ("critic.strategy=megatron", ValueError, r"critic\.strategy=megatron: adaptive_warmup drives fsdp and fsdp2"),
    ],
)
def test_what_cannot_be_is_refused_before_any_model_is_loaded(option: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        get_trainer_cls("adaptive_warmup")(configured(option))


def test_the_factor_goes_with_the_batch_and_the_lr_comes_back() -> None:
    trainer = made("+adaptive_warmup.actor.warmup_steps=4")
    batch, metrics = KVBatchMeta(), {"actor/lr": 1.0}

    def update(batch: KVBatchMeta, metrics: dict[str, float]) -> KVBatchMeta:
        metrics[f"actor/{SCHEDULED}"] = 0.5
        return batch

    trainer._update("actor", update, batch, metrics)
    assert batch.extra_info[FACTOR] == 0.25
    assert metrics == {"actor/lr": 1.0}
    assert trainer._scheduled == {"actor": 0.5}


def test_workers_with_another_engine_end_the_run_and_say_what_to_set() -> None:
    trainer = made()
    with pytest.raises(RuntimeError, match=r"the critic's workers did not .* VERL_ENGINE_VENDOR"):
        trainer._update("critic", lambda batch, metrics: batch, KVBatchMeta(), {"critic/lr": 1.0})


@pytest.mark.parametrize(
    ("count", "workers", "micro", "share"),
    [(64, 8, 16, (8, 8)), (64, 2, 12, (24, 12)), (7, 2, None, (3, 3)), (3, 4, 4, (0, 0))],
)
def test_a_workers_share_of_the_kls_sequences_is_whole_micro_batches(
    count: int, workers: int, micro: int | None, share: tuple[int, int]
) -> None:
    assert _share(count, workers, micro) == share


def test_verls_configuration_is_left_as_it_was_but_for_the_mode() -> None:
    config = configured("+adaptive_warmup.actor.warmup_steps=4")
    before = OmegaConf.to_container(config)
    get_trainer_cls("adaptive_warmup")(config)
    after = OmegaConf.to_container(config)
    before["trainer"]["v1"]["trainer_mode"] = "sync"
    assert after == before
