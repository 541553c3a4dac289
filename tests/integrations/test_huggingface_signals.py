"""What `AdaptiveWarmupCallback` sees of each step of the real `transformers.Trainer`, and does about it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback

from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from tests.integrations.trainers import (
    FLAT,
    ON_A_METRIC,
    PEAK,
    STEPS,
    WARMUP,
    Record,
    arguments,
    rows,
    same,
    trainer,
)


@pytest.mark.parametrize("clip", [0.0, 1e-3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_steps_loss_and_norm_are_those_the_trainer_would_log(
    tmp_path: Path, accumulate: int, clip: float
) -> None:
    common = {**FLAT, "gradient_accumulation_steps": accumulate, "max_grad_norm": clip}
    bare = Record()
    trainer(tmp_path, [bare], **common).train()
    warmup = AdaptiveWarmupCallback(1, law="linear")
    record = Record(warmup)
    trainer(tmp_path, [record, warmup], logging_steps=50, **common).train()
    signals = list(dict.fromkeys(record.signals))  # one for each step, though an epoch's end shows the last again
    assert [s.loss for s in signals if s] == bare.logged("loss")
    norms = [s.grad_norm for s in signals if s]
    assert norms == bare.logged("grad_norm")
    assert len(norms) == STEPS
    assert min(norms) > 10 * 1e-3  # not what clipping leaves


def test_a_loss_that_is_observed_goes_before_the_hosts_own_and_a_norm_behind(tmp_path: Path) -> None:
    """The updates are cut by the host's norm, which is then to be held against its own kind."""

    class Told(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                warmup.observe(loss=123.0, grad_norm=7.0)

    warmup = AdaptiveWarmupCallback(1, law="linear")
    record = Record(warmup)
    trainer(tmp_path, [record, Told(), warmup], **FLAT).train()
    signals = [s for s in dict.fromkeys(record.signals) if s]
    expected = [*zip(record.logged("loss"), record.logged("grad_norm"), strict=True)]
    expected[2] = (123.0, expected[2][1])
    assert [(s.loss, s.grad_norm) for s in signals] == expected


def test_norms_of_another_scale_that_are_observed_cut_no_update(tmp_path: Path) -> None:
    """Such as those after clipping."""

    class Tells(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            warmup.observe(grad_norm=1e-3)

    warmup = AdaptiveWarmupCallback(1, probe=None)
    record = Record(warmup)
    settings = {**FLAT, "data": rows(200), "max_steps": 50, "per_device_train_batch_size": 2}
    trainer(tmp_path, [record, Tells(), warmup], **settings).train()
    assert record.lrs == [PEAK] * 50


def test_loss_and_norm_of_a_language_model_under_accumulation(tmp_path: Path) -> None:
    def model() -> GPT2LMHeadModel:
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1))

    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 16, (8,), generator=generator) for _ in range(20)]
    data = [{"input_ids": text, "labels": text} for text in texts]
    common = {**FLAT, "data": data, "gradient_accumulation_steps": 2, "max_steps": 6}
    bare = Record()
    trainer(tmp_path, [bare], model=model(), **common).train()
    warmup = AdaptiveWarmupCallback(1, law="linear")
    record = Record(warmup)
    trainer(tmp_path, [record, warmup], model=model(), logging_steps=50, **common).train()
    signals = list(dict.fromkeys(record.signals))
    assert [s.loss for s in signals if s] == bare.logged("loss")
    assert [s.grad_norm for s in signals if s] == bare.logged("grad_norm")


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_loss_raises_an_alarm_and_training_goes_on(tmp_path: Path, broken: float) -> None:
    class Own(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            return loss * (broken if self.state.global_step == 5 else 1.0)

    class Looks(TrainerCallback):
        def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
            after.append([p.detach().clone() for p in model.parameters()])

    after: list[list[Tensor]] = []
    warmup = AdaptiveWarmupCallback(WARMUP)
    record = Record(warmup)
    trainer(tmp_path, [record, warmup, Looks()], cls=Own, **FLAT).train()
    assert same(after[5], after[4])  # the update is skipped
    assert not same(after[6], after[5])
    assert all(p.isfinite().all() for p in after[-1])
    assert len(record.lrs) == STEPS
    assert all(math.isfinite(lr) and 0 < lr <= PEAK for lr in record.lrs)
    assert warmup.decision is not None
    assert "non_finite" in [alarm.name for d in record.decisions if d for alarm in d.alarms]
    assert record.logged("adaptive_warmup/alarms")[5:7] == [0, 1]


@pytest.mark.parametrize("schedule", ["linear", ON_A_METRIC[-1]])
def test_an_outlying_gradient_is_cut_at_that_very_update(tmp_path: Path, schedule: str) -> None:
    class Order(Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    lr, steps = 1e-4, 14  # so small an lr that the gradient stays as it is
    settings = {**arguments(schedule), "warmup_steps": 1, "max_grad_norm": 0.0, "max_steps": steps}
    settings |= {"eval_strategy": "no"} if schedule == "linear" else {"eval_steps": 100}
    warmup = AdaptiveWarmupCallback(1)
    record = Record(warmup)
    data = rows(60, outlier=4 * 10)  # in the batch of update 10
    trainer(tmp_path, [record, warmup], cls=Order, data=data, learning_rate=lr, **settings).train()
    own = [lr * min(1.0, (steps - t) / (steps - 1)) for t in range(steps)] if schedule == "linear" else [lr] * steps
    used = record.lrs
    assert used[:10] == pytest.approx(own[:10])
    assert used[10] < 1e-2 * own[10]
    assert used[11:] == pytest.approx(own[11:])
    norms = [s.grad_norm for s in record.signals if s and s.grad_norm]
    usual = math.exp(sum(map(math.log, norms[:10])) / 10)
    assert used[10] * max(norms) == pytest.approx(own[10] * usual, rel=0.5)  # an update of the usual size
    assert record.logged("learning_rate") == used


@pytest.mark.parametrize("policy", ["hold", "warn", "stop"])
def test_gaming(tmp_path: Path, policy: str, caplog: pytest.LogCaptureFixture) -> None:
    warmup = AdaptiveWarmupCallback(20, on_gaming=policy)
    record = Record(warmup)

    class Gamed(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            warmup.observe(kl_reward=0.1 + 0.01 * math.sin(state.global_step))

    trainer(tmp_path, [record, Gamed(), warmup], max_steps=15, **FLAT).train()
    assert caplog.text.count("kl_gaming") == 1
    assert warmup.decision is not None
    assert [alarm.name for alarm in warmup.decision.alarms] == ["kl_gaming"]
    # Nine positive KL rewards are the proof: it is known after update 8, and so concerns update 9.
    held = {"hold": [9 / 20] * 6, "warn": [n / 20 for n in range(10, 16)], "stop": []}[policy]
    assert record.lrs == pytest.approx([PEAK * f for f in [n / 20 for n in range(1, 10)] + held])
