"""What is read of each step of the real trainers of TRL, and where it is from."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from adaptive_warmup import Signals
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from adaptive_warmup.integrations.trainer_signals import TrainerSignals, own_keys
from tests.integrations.tiny import model, tokenizer
from tests.integrations.trainers import FLAT, Record, trainer
from tests.integrations.trl_trainers import BETA, HOSTS, ON_POLICY, pairs, run

# By signal, the key under which TRL logs the same number when it logs every step.
LOGGED: dict[str, dict[str, str]] = {
    "Trainer": {},
    "SFT": {"entropy": "entropy"},
    "Reward": {},
    "DPO": {"entropy": "entropy"},
    "KTO": {"entropy": "entropy"},
    "RLOO": {
        "task_reward": "reward",
        "reference_kl": "kl",
        "entropy": "entropy",
        "clip_fraction": "clip_ratio/region_mean",
    },
    "GRPO": {
        "task_reward": "reward",
        "reference_kl": "kl",
        "entropy": "entropy",
        "clip_fraction": "clip_ratio/region_mean",
    },
    "OnlineDPO": {"task_reward": "objective/scores"},
    "PPO": {
        "kl": "policy/kl",
        "reference_kl": "policy/reference_kl",
        "task_reward": "objective/scores",
        "kl_reward": "objective/non_score_reward",
        "clip_fraction": "policy/clipfrac_avg",
        "entropy": "policy/entropy_avg",
        "explained_variance": "value/explained_variance",
    },
}


def harmless(**settings: Any) -> tuple[AdaptiveWarmupCallback, Record]:
    warmup = AdaptiveWarmupCallback(1, law="linear", **settings)
    return warmup, Record(warmup)


def signals(record: Record) -> list[Signals]:
    """Of each step once: an epoch's end shows the last again."""
    return [one for one in dict.fromkeys(record.signals) if one]


class Aside(TrainerCallback):
    """Logs after each step a score of the model while it is evaluated, and then one of its training."""

    def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
        model.eval()
        self.trainer.log({"my/score": 99.0})
        model.train()
        self.trainer.log({"my/score": 0.5})


def test_what_is_logged_while_the_model_is_evaluated_is_of_no_step(tmp_path: Path) -> None:
    warmup, record = harmless(signals={"my/score": "task_reward"})
    aside = Aside()
    aside.trainer = trainer(tmp_path, [record, warmup, aside], max_steps=4, **FLAT)
    aside.trainer.train()
    assert [one.task_reward for one in signals(record)] == [None, 0.5, 0.5, 0.5]


def test_of_lists_that_grow_the_gain_counts_and_of_new_ones_all() -> None:
    """A trainer that logs within a step begins new ones."""
    host = SimpleNamespace(_metrics={"train": {"my/score": [1.0, 2.0, 3.0]}})
    reader = TrainerSignals(own_keys({"my/score": "task_reward"}), host)
    reader.begin()
    host._metrics["train"]["my/score"] += [5.0, 6.0]
    assert reader.end() == {"task_reward": 5.5}
    reader.begin()
    host._metrics = {"train": {"my/score": [7.0]}}
    assert reader.end() == {"task_reward": 7.0}


@pytest.mark.parametrize(("host", "every"), [*((host, 50) for host in HOSTS), ("GRPO", 2)])
def test_every_steps_signals_are_those_that_would_be_logged_at_every_step(
    tmp_path: Path, host: str, every: int
) -> None:
    common = {"gradient_accumulation_steps": 2, "max_steps": 4, **FLAT}
    bare = Record()
    run(host, tmp_path, [bare], **common).train()
    warmup, record = harmless()
    run(host, tmp_path, [record, warmup], logging_steps=every, **common).train()
    seen = signals(record)
    assert len(seen) == 4
    for signal, key in LOGGED[host].items():
        assert [getattr(one, signal) for one in seen] == bare.logged(key)
        assert warmup.sources[signal] == key
    assert [one.grad_norm for one in seen] == bare.logged("grad_norm")
    assert [one.loss for one in seen] == pytest.approx(bare.logged("loss"), abs=1e-4)  # OnlineDPO rounds it
    reported = {"lr_scale", "kl_source", "loss", "grad_norm", *LOGGED[host]}
    reported |= {"kl_reward"} if host in ("RLOO", "OnlineDPO") else set()
    assert {name for name in Signals._fields if getattr(seen[-1], name) is not None} == reported


# --- The KL reward, which follows from what is logged ---


def sequence_kl(run_of: Any, prompt: Tensor, mask: Tensor, completion: Tensor, kept: Tensor) -> float:
    """The mean over sequences of the log-ratio of policy and reference, summed over the tokens of the response."""
    ids, attention = torch.cat([prompt, completion], 1), torch.cat([mask, kept], 1)

    def logprobs(model: Any) -> Tensor:
        with torch.no_grad():
            scores = model(input_ids=ids, attention_mask=attention).logits[:, prompt.shape[1] - 1 : -1]
        return scores.log_softmax(-1).gather(2, completion.unsqueeze(2)).squeeze(2)

    return float(((logprobs(run_of.model) - logprobs(run_of.ref_model)) * kept).sum(1).mean())


def early_ends(made: Any) -> None:
    """A fourth of the vocabulary ends a response, so that their lengths differ."""
    ids = list(range(0, 264, 4))
    made.generation_config.eos_token_id = ids
    made.generation_config.max_new_tokens = 6
    made.eos_token_ids = ids


def test_the_kl_reward_of_rloo(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warmup, record = harmless()
    made: Any = run("RLOO", tmp_path, [record, warmup], max_steps=4, learning_rate=0.02)
    early_ends(made)
    score, expected, lengths = made._generate_and_score_completions, [], set()

    def see(inputs: Any) -> Any:
        out = score(inputs)
        keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        expected.append(-BETA * sequence_kl(made, *(out[key] for key in keys)))
        lengths.update(out["completion_mask"].sum(1).tolist())
        return out

    made._generate_and_score_completions = see
    with caplog.at_level(logging.INFO, "adaptive_warmup"):
        made.train()
    assert [one.kl_reward for one in signals(record)] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert max(map(abs, expected)) > 1e-3
    assert len(lengths) > 1
    assert warmup.sources["kl_reward"] == "derived: -beta * kl * completions/mean_length"
    assert "kl_reward is read from RLOOTrainer: derived: -beta * kl * completions/mean_length" in caplog.text


def test_without_a_kl_in_its_reward_rloo_has_no_kl_reward(tmp_path: Path) -> None:
    warmup, record = harmless()
    run("RLOO", tmp_path, [record, warmup], max_steps=2, beta=0.0).train()
    assert [(one.kl_reward, one.reference_kl) for one in signals(record)] == [(None, None)] * 2


def test_the_kl_reward_of_online_dpo_leaves_the_padding_out(tmp_path: Path) -> None:
    warmup, record = harmless()
    made: Any = run("OnlineDPO", tmp_path, [record, warmup], max_steps=4, learning_rate=0.02)
    early_ends(made)
    generate, expected, lengths = made._generate, [], set()

    def see(model: Any, prompts: Any, images: Any = None) -> Any:
        out = generate(model, prompts, images)
        expected.append(-BETA * sequence_kl(made, *out[:4]))
        lengths.update(out[3].sum(1).tolist())
        return out

    made._generate = see
    made.train()
    read = [one.kl_reward for one in signals(record)]
    assert read == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert len(lengths) > 1
    with_padding = record.logged("objective/non_score_reward")
    assert abs(with_padding[-1] - expected[-1]) > 0.05 * abs(expected[-1])


# --- What must not get in, and what must ---


def test_evaluations_are_left_out(tmp_path: Path) -> None:
    class Evaluates(TrainerCallback):
        inside = False

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.inside = True

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.inside = False

    where = Evaluates()

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [1000.0 if where.inside else float(i % 2) for i in range(len(completions))]

    warmup, record = harmless(signals={"eval_*": "explained_variance"})
    run(
        "GRPO", tmp_path, [record, warmup, where], max_steps=3, eval_strategy="steps", eval_steps=1, reward=reward
    ).train()
    evaluated = [logs["eval_reward"] for logs in record.logs if "eval_reward" in logs]
    assert evaluated == [1000.0] * 3
    assert [one.task_reward for one in signals(record)] == [0.5] * 3
    assert all(one.explained_variance is None for one in signals(record))


def test_a_log_within_a_step_costs_what_it_cleared_and_no_more(tmp_path: Path) -> None:
    class Logs(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            made.log({"mine": 1.0})

    common = {"gradient_accumulation_steps": 2, "max_steps": 3, **FLAT}
    plain = Record()
    run("SFT", tmp_path, [plain], **common).train()
    warmup, record = harmless()
    made = run("SFT", tmp_path, [record, warmup, Logs()], **common)
    made.train()
    first = [logs["entropy"] for logs in record.logs if "mine" in logs]
    both = plain.logged("entropy")
    assert [one.entropy for one in signals(record)] == pytest.approx(
        [2 * b - a for a, b in zip(first, both, strict=True)]
    )


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_reward_that_breaks_holds_the_warmup_and_not_the_training(tmp_path: Path, broken: float) -> None:
    class Breaks(TrainerCallback):
        step = 0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.step = state.global_step

    where = Breaks()

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [broken if where.step == 2 else float(i % 3) for i in range(len(completions))]

    warmup = AdaptiveWarmupCallback(10)
    record = Record(warmup)
    run("GRPO", tmp_path, [record, where, warmup], reward=reward, **FLAT).train()
    factors = record.logged("adaptive_warmup/factor")
    assert len(factors) == 6
    assert factors[3] == factors[2]  # the step after the broken reward
    assert factors[5] > factors[3]
    assert all(math.isfinite(lr) for lr in record.lrs)


def test_a_value_on_a_device_is_not_read() -> None:
    host = SimpleNamespace(_metrics={"train": {"my/kl": [torch.ones(())]}, "eval": {"my/kl": [torch.ones(())]}})
    reader = TrainerSignals(own_keys({"my/kl": "kl:probe"}), host)
    reader.begin()
    host._metrics["train"]["my/kl"] += [torch.ones(1, device="meta"), torch.ones((), device="meta")]
    read = reader.end()
    assert (read["kl"].device.type, read["kl"].shape, read["kl_source"]) == ("meta", (), "probe")
    with pytest.raises(RuntimeError, match="meta tensors"):
        float(read["kl"])  # a meta tensor cannot be: so it has not been


def test_what_is_no_number_is_left_out() -> None:
    host = SimpleNamespace(stats={"score": [], "pair": [], "none": []})
    reader = TrainerSignals(own_keys({"score": "task_reward", "pair": "kl", "none": "entropy"}), host)
    reader.begin()
    host.stats["score"] += [1.0, None, (3, 4), 2.0, "5", torch.ones(2)]
    host.stats["pair"] += [(1, 2)]
    assert reader.end() == {"task_reward": 1.5}
    assert reader.sources == {"task_reward": "score"}


# --- The user's keys ---


def test_a_trainer_that_nobody_knows_has_its_loss_and_norm(tmp_path: Path) -> None:
    class GRPOTrainer(Trainer):  # of that name, and not TRL's
        pass

    warmup, record = harmless()
    trainer(tmp_path, [record, warmup], cls=GRPOTrainer, max_steps=2).train()
    assert all(one.grad_norm and one.loss and one.task_reward is None for one in signals(record))
    assert not warmup.sources


def test_keys_of_a_trainer_of_trl_that_is_not_in_the_table(tmp_path: Path) -> None:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    def made(callbacks: list[TrainerCallback], **settings: Any) -> Trainer:
        plain = {"output_dir": str(tmp_path), "max_steps": 3, "report_to": [], "use_cpu": True, "bf16": False, **FLAT}
        args = ORPOConfig(**plain, max_length=16, gradient_accumulation_steps=2, **settings)
        return ORPOTrainer(
            model=model(), args=args, train_dataset=pairs(48), processing_class=tokenizer(), callbacks=callbacks
        )

    bare = Record()
    made([bare], logging_steps=1).train()
    warmup, record = harmless(signals={"log_odds_ratio": "explained_variance"})
    made([record, warmup], logging_steps=50).train()
    read = [one.explained_variance for one in signals(record)]
    assert read == pytest.approx(bare.logged("log_odds_ratio"))
    assert len(set(read)) == 3
    assert all(one.entropy is None and one.grad_norm for one in signals(record))


def test_keys_of_the_users_own_in_the_logs_of_each_step(tmp_path: Path) -> None:
    class Own(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.log({"my/drift": 0.001 * (self.state.global_step + 1), "adaptive": 5.0})
            return super().compute_loss(*args, **kwargs)

    warmup, record = harmless(signals={"my/*": "kl:in_loop"})
    trainer(tmp_path, [record, warmup], cls=Own, max_steps=3).train()
    assert [(one.kl, one.kl_source) for one in signals(record)] == [(0.001 * n, "in_loop") for n in (1, 2, 3)]
    assert warmup.sources == {"kl": "my/drift"}


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, torch.tensor])
def test_a_key_of_the_users_own_may_be_of_numpy_or_torch(tmp_path: Path, kind: Any) -> None:
    class Own(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.log({"my/score": kind(self.state.global_step)})
            return super().compute_loss(*args, **kwargs)

    warmup, record = harmless(signals={"my/score": "task_reward"})
    trainer(tmp_path, [record, warmup], cls=Own, max_steps=3).train()
    assert [one.task_reward for one in signals(record)] == [0.0, 1.0, 2.0]


def test_keys_of_the_users_own_in_logs_of_a_window_count_for_the_step_after(tmp_path: Path) -> None:
    class Own(Trainer):
        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            super().log({**logs, "score": float(self.state.global_step)}, *args, **kwargs)

    warmup, record = harmless(signals={"score": "task_reward"})
    trainer(tmp_path, [record, warmup], cls=Own, max_steps=6, logging_steps=2).train()
    assert [one.task_reward for one in signals(record)] == [None, None, 2.0, None, 4.0, None]


def test_the_users_keys_go_before_the_trainers_and_what_is_observed_before_both(tmp_path: Path) -> None:
    class Told(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                warmup.observe(task_reward=-7.0, kl=0.5, kl_source="probe")

    warmup, record = harmless(signals={"completions/mean_length": "task_reward", "clip_ratio/low_*": "kl:in_loop"})
    run("GRPO", tmp_path, [record, Told(), warmup], max_steps=3).train()
    assert [one.task_reward for one in signals(record)] == [6.0, -7.0, 6.0]
    assert [(one.kl, one.kl_source) for one in signals(record)] == [(0.0, "in_loop"), (0.5, "probe"), (0.0, "in_loop")]
    assert warmup.sources["kl"] == "clip_ratio/low_mean, clip_ratio/low_min"


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"my/kl": "kll"}, TypeError, "Did you mean kl"),
        ({"my/kl": "approx_kl"}, TypeError, "kl, with kl_source='in_loop'"),
        ({"my/kl": "kl:guess"}, ValueError, "kl_source='guess'"),
        ({"my/lr": "lr"}, ValueError, "leave that key out"),
        (["my/kl"], TypeError, "signals=['my/kl']: give a dict"),
        ({"my/kl": 3}, TypeError, "such as {'my/kl': 'kl'}"),
    ],
)
def test_bad_keys_are_refused_at_construction(given: Any, error: Any, words: str) -> None:
    with pytest.raises(error) as caught:
        AdaptiveWarmupCallback(signals=given)
    assert words in str(caught.value)


@pytest.mark.parametrize("host", ON_POLICY)
def test_nothing_is_asked_of_the_model_that_the_trainer_does_not_ask(tmp_path: Path, host: str) -> None:
    counts = []
    for callbacks in ([], [AdaptiveWarmupCallback(1, law="linear")]):
        made = run(host, tmp_path, callbacks, max_steps=2)
        calls: list[int] = []
        made.model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        made.train()
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0
