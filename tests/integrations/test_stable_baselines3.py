"""`AdaptiveWarmupCallback` under the real Stable-Baselines3: what updates ran at, what is saved and what is logged."""

from __future__ import annotations

import base64
import copy
import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import FlattenExtractor

from adaptive_warmup.history import read
from adaptive_warmup.integrations.stable_baselines3 import AdaptiveWarmupCallback

PEAK = 0.01
ROLLOUT = 128
pytestmark = pytest.mark.filterwarnings("ignore:You are trying to run PPO on the GPU")


class Record(BaseCallback):
    """The lr read within every `optimizer.step()`, rollout by rollout, and the callback's factor then."""

    def __init__(self, warmup: AdaptiveWarmupCallback) -> None:
        super().__init__()
        self.warmup = warmup
        self.lrs: list[list[float]] = []
        self.factors: list[float] = []
        self.signals: list[Any] = []

    def _on_training_start(self) -> None:
        hook = lambda optimizer, *_: self.lrs[-1].append(optimizer.param_groups[0]["lr"])  # noqa: E731
        self._hook = self.model.policy.optimizer.register_step_pre_hook(hook)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.signals.append(self.warmup.regulator.signals)

    def _on_rollout_end(self) -> None:
        self.lrs.append([])
        self.factors.append(self.warmup.decision.factor)

    def _on_training_end(self) -> None:
        self._hook.remove()
        self.signals.append(self.warmup.regulator.signals)


def ppo(env: str = "CartPole-v1", seed: int = 0, **settings: Any) -> PPO:
    settings = {"learning_rate": PEAK, "n_steps": ROLLOUT // 2, "batch_size": 32, "n_epochs": 4, **settings}
    return PPO("MlpPolicy", make_vec_env(env, 2, seed=seed), seed=seed, device="cpu", **settings)


def learn(model: Any, rollouts: int, warmup: AdaptiveWarmupCallback, **settings: Any) -> Record:
    record = Record(warmup)
    model.learn(rollouts * ROLLOUT, callback=[warmup, record], log_interval=1000, **settings)
    return record


def weights(model: Any) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


@pytest.mark.parametrize("schedule", [lambda left: 1.0, lambda left: left**2])
def test_every_update_runs_at_schedule_times_factor(schedule: Callable[[float], float]) -> None:
    model = ppo(learning_rate=lambda left: PEAK * schedule(left))
    record = learn(model, 8, AdaptiveWarmupCallback(4, target_kl=1e-4))
    left = [1 - (t + 1) / 8 for t in range(8)]
    expected = [PEAK * schedule(x) * factor for x, factor in zip(left, record.factors, strict=True)]
    assert [set(lrs) for lrs in record.lrs] == [{lr} for lr in expected]
    assert [len(lrs) for lrs in record.lrs] == [16] * 8
    assert [s.lr_scale for s in record.signals[1:]] == pytest.approx([schedule(x) for x in left])
    assert record.factors[0] == 0.25
    assert min(record.factors) < 0.25, "a target this low holds the lr below where it began"


def test_without_a_policy_kl_it_is_as_long_as_the_nominal_warmup() -> None:
    model = DQN("MlpPolicy", "CartPole-v1", learning_rate=PEAK, learning_starts=20, train_freq=4, device="cpu", seed=0)
    warmup = AdaptiveWarmupCallback(5)
    record = Record(warmup)
    model.learn(48, callback=CallbackList([warmup, record]))
    lrs = [lr for train in record.lrs for lr in train]
    assert lrs == pytest.approx([PEAK * min(5 ** (t / 4 - 1), 1.0) for t in range(7)])  # exponential: the return tells
    assert warmup.decision.step == 7, "rollouts before learning_starts are no steps"


class Compare(BaseCallback):
    """The exact KL between the categoricals before and after, beside the one that was observed."""

    def __init__(self, warmup: AdaptiveWarmupCallback) -> None:
        super().__init__()
        self.warmup, self.before, self.pairs = warmup, None, []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.before = copy.deepcopy(self.model.policy)
        self.states = torch.as_tensor(self.model.rollout_buffer.observations.reshape(-1, 4).copy())

    def _on_rollout_start(self) -> None:
        if self.before is not None:
            old, new = (p.get_distribution(self.states).distribution for p in (self.before, self.model.policy))
            exact = torch.distributions.kl_divergence(old, new).mean()
            self.pairs.append((exact.item(), self.warmup.regulator.signals.kl))


def test_the_kl_is_that_of_the_whole_train() -> None:
    warmup = AdaptiveWarmupCallback(1)
    compare = Compare(warmup)
    ppo(n_steps=512, batch_size=256, n_epochs=1, learning_rate=1e-3).learn(6 * 1024, callback=[warmup, compare])
    exact, observed = np.array(compare.pairs).T
    assert observed == pytest.approx(exact, rel=0.3)
    assert warmup.regulator.signals.kl_source == "post_update:1x4"


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_the_rollout_is_measured_in_mini_batches_since_more_may_not_fit_into_memory() -> None:
    model, asked = ppo(n_steps=96, batch_size=40, n_epochs=1), list[int]()
    original = model.policy.evaluate_actions

    def evaluate(observations: torch.Tensor, actions: torch.Tensor) -> Any:
        asked.append(len(observations))
        return original(observations, actions)

    model.policy.evaluate_actions = evaluate
    model.learn(2 * 96, callback=AdaptiveWarmupCallback(4))
    assert asked == 2 * [40, 40, 40, 40, 32]  # the updates' own, then the measurement's


class Dropping(FlattenExtractor):
    """Features of which half are dropped, at random, while the policy trains."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(super().forward(observations), training=self.training)


def test_without_an_update_the_kl_is_0_whatever_the_policy_drops_while_it_trains() -> None:
    model = ppo(learning_rate=0.0, policy_kwargs={"features_extractor_class": Dropping})
    signals = learn(model, 2, AdaptiveWarmupCallback(4)).signals[-1]
    assert signals.kl == pytest.approx(0.0, abs=1e-9)


class OwnBuffer(RolloutBuffer):
    """A kind of its own: what its policy needs to evaluate actions is not known."""


@pytest.mark.parametrize(("epochs", "source"), [(1, "in_loop"), (4, "post_update:4x4")])
def test_with_another_rollout_buffer_it_goes_by_the_logged_kl(epochs: int, source: str) -> None:
    model = ppo(rollout_buffer_class=OwnBuffer, n_epochs=epochs)
    signals = learn(model, 3, AdaptiveWarmupCallback(4)).signals[-1]
    assert signals.kl == pytest.approx(model.logger.name_to_value["train/approx_kl"])
    assert signals.kl_source == source


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_continuous_actions_and_dict_observations(algorithm: Any) -> None:
    env = gymnasium.wrappers.TransformObservation(
        gymnasium.make("Pendulum-v1"),
        lambda x: {"angle": x[:2], "speed": x[2:]},
        gymnasium.spaces.Dict(
            {"angle": gymnasium.spaces.Box(-1.0, 1.0, (2,)), "speed": gymnasium.spaces.Box(-8.0, 8.0, (1,))}
        ),
    )
    model = algorithm("MultiInputPolicy", env, n_steps=64, learning_rate=1e-3, seed=0, device="cpu")
    warmup = AdaptiveWarmupCallback(4)
    model.learn(4 * 64, callback=warmup)
    assert warmup.decision.step == 4
    assert 0.0 < warmup.regulator.signals.kl < 1.0


def test_returns_and_what_is_logged_are_observed() -> None:
    record = learn(ppo(), 3, AdaptiveWarmupCallback(4))
    assert record.signals[0] is None
    for signals in record.signals[1:]:
        assert 9 <= signals.task_reward <= ROLLOUT / 2
        assert 0.0 <= signals.clip_fraction <= 1.0
        assert np.isfinite([signals.loss, signals.explained_variance]).all()


class Ended(BaseCallback):
    """The returns of the episodes that ended in each rollout, and the mean over the last hundred that is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.returns: list[list[float]] = []
        self.rolling: list[float] = []

    def _on_rollout_start(self) -> None:
        self.returns.append([])

    def _on_step(self) -> bool:
        self.returns[-1] += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_end(self) -> None:
        self.rolling.append(np.mean([episode["r"] for episode in self.model.ep_info_buffer] or [np.nan]))


def test_the_task_reward_is_of_the_rollouts_own_episodes_and_no_rolling_mean() -> None:
    """Values of a rolling mean hang together, and the noise that a drop is judged by would be taken for less."""
    warmup, ended = AdaptiveWarmupCallback(4, target_kl=0.02), Ended()
    record = Record(warmup)
    ppo(n_steps=16).learn(10 * ROLLOUT, callback=[warmup, record, ended])
    rewards = [signals.task_reward for signals in record.signals[1:]]
    assert rewards == [np.mean(returns) if returns else None for returns in ended.returns]
    assert None in rewards, "in some of them no episode ended"
    of_both = [pair for pair in zip(rewards, ended.rolling, strict=True) if pair[0] is not None]
    assert np.mean([abs(reward / rolling - 1.0) > 0.1 for reward, rolling in of_both]) > 0.5


def test_the_log_shows_each_factor_beside_the_lr_that_it_made(tmp_path: Path) -> None:
    model = ppo()
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(5 * ROLLOUT, callback=AdaptiveWarmupCallback(4))
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    trained = [row for row in rows if "train/learning_rate" in row]
    assert len(trained) == 4
    for row in trained:
        assert row["train/learning_rate"] == pytest.approx(PEAK * row["adaptive_warmup/factor"])
    assert [row["adaptive_warmup/nominal"] for row in trained] == [0.25, 0.5, 0.75, 1.0]


def test_each_train_is_in_the_decision_log_also_of_a_model_that_learns_on(tmp_path: Path) -> None:
    model, log = ppo(learning_rate=lambda left: PEAK * left), tmp_path / "run.jsonl"
    first = learn(model, 3, AdaptiveWarmupCallback(4, log=log))
    second = learn(model, 2, AdaptiveWarmupCallback(4, log=log), reset_num_timesteps=False)
    run = read(log)
    assert [step["lr"] for step in run.steps] == pytest.approx([lrs[0] for lrs in first.lrs + second.lrs])
    assert run.problem is None
    assert [step["factor"] for step in run.steps] == pytest.approx(first.factors + second.factors)
    with pytest.raises(ValueError, match=r"run.jsonl is the log of another run \(warmup_steps 4, here 5\)"):
        learn(ppo(learning_rate=lambda left: PEAK * left), 1, AdaptiveWarmupCallback(5, log=log))


def go_on(model: PPO) -> tuple[Record, torch.Tensor]:
    model.set_random_seed(1)
    model._last_obs = None  # the environment starts afresh, as after a load
    record = learn(model, 4, AdaptiveWarmupCallback(4, target_kl=1e-3), reset_num_timesteps=False)
    return record, weights(model)


def test_save_and_load_are_exact(tmp_path: Path) -> None:
    model = ppo()
    learn(model, 3, AdaptiveWarmupCallback(4, target_kl=1e-3))
    model.save(tmp_path / "model")
    record, end = go_on(model)
    loaded = PPO.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 2, seed=0), device="cpu")
    again, same_end = go_on(loaded)
    assert again.lrs == record.lrs
    assert again.signals[1:] == record.signals[1:]
    assert torch.equal(same_end, end)
    assert loaded.adaptive_warmup == model.adaptive_warmup
    assert again.factors[0] != 0.25, "it did not begin anew"


def test_a_checkpoint_from_within_the_run_holds_the_state_and_the_plain_schedule(tmp_path: Path) -> None:
    model = ppo()
    warmup = AdaptiveWarmupCallback(4)
    model.learn(4 * ROLLOUT, callback=[warmup, CheckpointCallback(ROLLOUT // 2 * 3 + 8, str(tmp_path), "at")])
    (path,) = tmp_path.glob("at_*.zip")
    loaded = PPO.load(path, device="cpu")
    assert loaded.adaptive_warmup["state"]["step"] == 3
    assert loaded.lr_schedule(1.0) == model.lr_schedule(1.0) == PEAK
    data = json.loads(zipfile.ZipFile(path).read("data"))
    pickled = base64.b64decode(data["lr_schedule"][":serialized:"])
    assert b"adaptive_warmup" not in pickled, "it loads where this package is not"


class Break(BaseCallback):
    def _on_step(self) -> bool:
        if self.n_calls == ROLLOUT:
            raise KeyboardInterrupt
        return True


def test_after_an_interruption_the_factor_is_not_doubled() -> None:
    model = ppo()
    with pytest.raises(KeyboardInterrupt):
        model.learn(9 * ROLLOUT, callback=[AdaptiveWarmupCallback(4), Break()])
    record = learn(model, 1, AdaptiveWarmupCallback(4))
    assert record.lrs[0][0] == pytest.approx(PEAK * record.factors[0])
    assert model.lr_schedule(1.0) == PEAK


def test_after_an_interruption_a_run_without_us_is_at_its_plain_schedule() -> None:
    model = ppo()
    with pytest.raises(KeyboardInterrupt):
        model.learn(9 * ROLLOUT, callback=[AdaptiveWarmupCallback(40), Break()])
    model.learn(2 * ROLLOUT, reset_num_timesteps=False)
    assert model.policy.optimizer.param_groups[0]["lr"] == PEAK


def test_two_on_one_model_are_refused() -> None:
    with pytest.raises(ValueError, match="two AdaptiveWarmupCallbacks on one model"):
        ppo().learn(ROLLOUT, callback=[AdaptiveWarmupCallback(4), AdaptiveWarmupCallback(40)])


def test_of_epochs_that_the_models_own_target_cut_short_nobody_knows_how_many_updates_they_made() -> None:
    model = ppo(target_kl=1e-9)
    signals = learn(model, 3, AdaptiveWarmupCallback(4)).signals[-1]
    assert model._n_updates < 3 * 4
    assert signals.kl_source == "post_update"


class Pay(BaseCallback):
    def __init__(self, warmup: AdaptiveWarmupCallback) -> None:
        super().__init__()
        self.warmup = warmup

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.warmup.observe(kl_reward=1.0 + 0.01 * self.num_timesteps)


def test_a_gamed_kl_reward_can_stop_the_run() -> None:
    model, warmup = ppo(n_epochs=1), AdaptiveWarmupCallback(4, on_gaming="stop")
    model.learn(50 * ROLLOUT, callback=[Pay(warmup), warmup])
    assert model.num_timesteps < 12 * ROLLOUT
    assert [alarm.name for alarm in warmup.decision.alarms] == ["kl_gaming"]


@pytest.mark.parametrize("begins", [0.01, 0.99])
def test_a_schedule_with_a_warmup_of_its_own_is_named(begins: float, caplog: pytest.LogCaptureFixture) -> None:
    model = ppo(learning_rate=lambda left: PEAK * min(1.0, begins + 10 * (1.0 - left)))
    with caplog.at_level(logging.WARNING, "adaptive_warmup"):
        learn(model, 1, AdaptiveWarmupCallback(4))
    assert "begins below its peak" in caplog.text


def test_bad_settings_and_signals_fail_where_they_come_in() -> None:
    with pytest.raises(ValueError, match="warmup_steps=0"):
        AdaptiveWarmupCallback(0)
    with pytest.raises(TypeError, match="unknown setting 'warmup': known are warmup_steps, target_kl"):
        AdaptiveWarmupCallback(4, warmup=4)
    with pytest.raises(TypeError, match=r"log=True: give a path, such as 'run\.jsonl'"):
        AdaptiveWarmupCallback(4, log=True)
    with pytest.raises(TypeError, match="approx_kl"):
        AdaptiveWarmupCallback(4).observe(approx_kl=0.1)


def test_at_a_peak_that_breaks_the_plain_run_it_cuts_the_lr_and_learns() -> None:
    """`benchmarks/experiments/cartpole` in little: the lr is 300 times Stable-Baselines3's default."""
    settings = {"learning_rate": 0.1, "n_steps": 256, "batch_size": 256, "n_epochs": 10}
    scores = {}
    for name, warmup in (("plain", None), ("adaptive", AdaptiveWarmupCallback(10, target_kl=0.02))):
        model = ppo(**settings)
        model.learn(12 * 512, callback=warmup)
        scores[name] = np.mean([episode["r"] for episode in model.ep_info_buffer])
    assert warmup.decision.factor < 0.3
    assert warmup.decision.step == 12
    assert scores["adaptive"] > 2 * scores["plain"]
