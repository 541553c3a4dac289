"""`PPOTrainer` is a Trainer: checkpoints, evaluation, adapters, callbacks, reporters, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    OPTConfig,
    TrainerCallback,
)

from adaptive_warmup.history import read
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from adaptive_warmup.integrations.ppo_trainer import PPOTrainer
from adaptive_warmup.ppo import Problem, ValueHead, ValueModel, response_logprobs
from tests.integrations.ppo_trainers import PROMPTS, make, seeing
from tests.integrations.tiny import logged, low_bytes, model, saved, settings, tokenizer
from tests.integrations.trainers import same, weights

LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
CLOCKS = ("eps", "_runtime", "_per_second", "total_flos", "preparation_time", "train_loss")


def told(trainer: PPOTrainer, after: int = 0) -> list[dict[str, float]]:
    """The logs after a step, without what is read off a clock."""
    history = [logs for logs in trainer.state.log_history if logs["step"] > after]
    return [{k: v for k, v in logs.items() if not k.endswith(CLOCKS)} for logs in history]


# Checkpoints


@pytest.mark.parametrize("step", [3, 8, 10])
@pytest.mark.parametrize("adapter", [False, True])
def test_resume_is_exact_to_the_bit(tmp_path: Path, step: int, adapter: bool) -> None:
    """Steps 3 and 10 are amid an RL step of four updates; an epoch has 8."""
    arguments: dict[str, Any] = {
        "max_steps": 13, "per_device_train_batch_size": 4, "num_mini_batches": 2, "num_ppo_epochs": 2,
        "gradient_accumulation_steps": 2, "lr_scheduler_type": "linear",
    }  # fmt: skip
    parts = {"train_dataset": PROMPTS.select(range(35)), "peft_config": LORA if adapter else None}

    def run(folder: str, **extra: Any) -> PPOTrainer:
        torch.manual_seed(0)  # of the adapter's first weights
        return make(tmp_path / folder, parts=parts, **arguments, **extra)

    whole = run("whole", save_strategy="steps", save_steps=step)
    whole.train()
    again = run("again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert same(weights(again), weights(whole))
    assert told(again, after=step)[:-1] == told(whole, after=step)[:-1]
    mine, theirs = (trainer.optimizer.state_dict()["state"] for trainer in (again, whole))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[p][name], theirs[p][name]) for p in mine for name in mine[p])


def test_a_checkpoint_is_a_policy_with_its_value_model_beside(tmp_path: Path) -> None:
    trainer = make(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert same(list(policy.state_dict().values()), list(trainer.model.policy.state_dict().values()))
    critic = load_file(tmp_path / "checkpoint-2" / "value_model.safetensors")
    assert all(torch.equal(critic[name], value) for name, value in trainer.model.critic.state_dict().items())
    assert (tmp_path / "checkpoint-2" / "tokenizer.json").exists()


def test_the_best_model_comes_back(tmp_path: Path) -> None:
    evaluated: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = make(
        tmp_path,
        parts={"eval_dataset": PROMPTS.select(range(9))},
        max_steps=3,
        load_best_model_at_end=True,
        **evaluated,
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    losses = logged(trainer, "eval_loss")
    assert best.name == f"checkpoint-{losses.index(min(losses)) + 1}"
    stored = load_file(best / "model.safetensors")
    assert all(torch.equal(trainer.model.policy.state_dict()[name], value) for name, value in stored.items())
    trainer.create_model_card()
    assert "ppo" in (tmp_path / "README.md").read_text().lower()


# Evaluation, callbacks, reporters


def test_evaluation_repeats_itself_and_disturbs_nothing(tmp_path: Path) -> None:
    parts = {"eval_dataset": {"few": PROMPTS.select(range(9)), "more": PROMPTS.select(range(20))}}
    evaluated = make(tmp_path, parts=parts, eval_strategy="steps", eval_steps=1)
    undisturbed = make(tmp_path)
    first, second = evaluated.evaluate(), evaluated.evaluate()
    names = ("eval_few_objective/scores", "eval_more_objective/scores", "eval_few_loss", "eval_few_objective/kl")
    assert [first[name] for name in names] == [second[name] for name in names]
    assert first["eval_few_loss"] == pytest.approx(-first["eval_few_objective/rlhf_reward"])
    for trainer in (evaluated, undisturbed):
        trainer.train()
    assert same(weights(evaluated), weights(undisturbed))
    assert len(logged(evaluated, "eval_few_loss")) == 2


def test_one_decision_for_each_rl_step(tmp_path: Path) -> None:
    warmup = AdaptiveWarmupCallback(13, log=tmp_path / "decisions.jsonl", target_kl=0.01)
    rates: list[float] = []

    class Rates(TrainerCallback):
        def on_optimizer_step(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
            rates.append(float(optimizer.param_groups[0]["lr"]))

    trainer = make(tmp_path, parts={"callbacks": [Rates(), warmup]}, max_steps=12, num_mini_batches=2, num_ppo_epochs=2)
    trainer.train()
    log = read(tmp_path / "decisions.jsonl")
    assert warmup.regulator is not None
    assert warmup.regulator.config.warmup_steps == 4  # RL steps of 4 updates each, which 13 are rounded up to
    assert [step["signals"]["kl"] for step in log.steps] == logged(trainer, "policy/kl")
    assert [step["signals"]["kl_reward"] for step in log.steps] == logged(trainer, "objective/non_score_reward")
    assert not any("kl_source" in step["signals"] for step in log.steps)  # it is the usual one, post_update
    assert len(logged(trainer, "adaptive_warmup/factor")) == 12
    assert [len(set(rates[i : i + 4])) for i in (0, 4, 8)] == [1, 1, 1]
    assert rates[0] == pytest.approx(1e-2 / 4)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_critic_has_a_warmup_of_its_own(tmp_path: Path, adaptive: bool) -> None:
    """Over 2 updates from half its peak on, under a linear decay over all 8."""
    rates: list[tuple[float, float]] = []

    class Rates(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
            rates.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[-1]["lr"]))

    def run(**arguments: Any) -> PPOTrainer:
        warmup = AdaptiveWarmupCallback(target_kl=0.01) if adaptive else None
        return make(
            tmp_path, parts={"callbacks": [*([warmup] if warmup else []), Rates()]}, max_steps=8, warmup_steps=4,
            value_warmup_steps=2, value_learning_rate=0.08, lr_scheduler_type="linear", **arguments,
        )  # fmt: skip

    trainer = run(save_strategy="steps", save_steps=1)
    trainer.train()
    critic = [0.04, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01]
    assert [lr for _, lr in rates] == pytest.approx(critic)
    assert logged(trainer, "value_lr") == pytest.approx(critic)
    factors = logged(trainer, "adaptive_warmup/factor")
    ramp = [0.0, 0.25, 0.5, 0.75] if not adaptive else factors[:4]
    assert [lr for lr, _ in rates[:4]] == pytest.approx([1e-2 * factor for factor in ramp])
    again = run()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert rates[8:] == rates[1:8]


def test_tensorboard_has_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make(tmp_path, report_to=["tensorboard"])
    trainer.train()
    folder = next(tmp_path.rglob("events.out*")).parent
    events = EventAccumulator(str(folder))
    events.Reload()
    scalars = events.Scalars("train/objective/scores")
    assert [one.value for one in scalars] == pytest.approx(logged(trainer, "objective/scores"))


# Models


def test_an_adapter_learns_and_without_it_the_policy_is_the_reference(tmp_path: Path) -> None:
    trainer = make(tmp_path, parts={"peft_config": LORA}, max_steps=4, save_strategy="steps", save_steps=4)
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, tensor in trainer.model.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "lora_" in name or name.startswith("critic.")}
    assert isinstance(trainer.model.critic, ValueHead)
    assert abs(logged(trainer, "policy/reference_kl")[0]) < 1e-6
    assert logged(trainer, "val/ratio")[0] == pytest.approx(1.0, abs=1e-5)  # its dropout is off
    ids = torch.tensor(tokenizer()(["one two three"])["input_ids"])
    inputs = ids, torch.ones_like(ids), 5
    plain = model().eval()
    assert torch.allclose(response_logprobs(trainer.reference, *inputs), response_logprobs(plain, *inputs), atol=1e-6)
    assert not torch.allclose(
        response_logprobs(trainer.model.policy, *inputs), response_logprobs(plain, *inputs), atol=1e-3
    )
    again = PeftModel.from_pretrained(plain, str(tmp_path / "checkpoint-4"))
    assert torch.allclose(
        response_logprobs(again, *inputs), response_logprobs(trainer.model.policy, *inputs), atol=1e-5
    )


def test_models_come_by_path(tmp_path: Path) -> None:
    judge = AutoModelForSequenceClassification.from_pretrained(saved(), num_labels=1)
    for value_model in (saved(), judge):
        args = settings(tmp_path, max_steps=1)
        trainer = PPOTrainer(
            saved(), args, reward_funcs=low_bytes, train_dataset=PROMPTS, ref_model=saved(), value_model=value_model
        )
        trainer.train()
        assert logged(trainer, "objective/scores")


# Rewards


def test_reward_functions_get_what_trl_gives_them(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def first(**given: Any) -> list[float | None]:
        seen.update(given)
        return [None, *[1.0] * 7]

    def second(completions: list[str], **_: Any) -> list[float]:
        return [2.0] * len(completions)

    trainer = make(tmp_path, parts={"reward_funcs": [first, second]}, max_steps=1, reward_weights=[1.0, 0.5])
    trainer.train()
    assert seen.keys() == {"prompts", "completions", "completion_ids", "trainer_state", "answer"}
    assert [f"one {answer}" for answer in seen["answer"]] == seen["prompts"]
    assert [tokenizer().decode(ids) for ids in seen["completion_ids"]] == seen["completions"]
    assert logged(trainer, "objective/scores") == [pytest.approx((1.0 + 7 * 2.0) / 8)]
    assert logged(trainer, "rewards/first/mean") == [1.0]
    assert logged(trainer, "rewards/second/mean") == [2.0]


def test_a_completion_that_was_cut_pays_a_penalty(tmp_path: Path) -> None:
    rewarded = {"reward_funcs": lambda completions, **_: [1.0] * len(completions)}
    trainer = make(tmp_path, parts=rewarded, max_steps=1, missing_eos_penalty=0.75)
    trainer.train()
    assert logged(trainer, "response_length") == [6.0]  # the limit: none has ended by itself
    assert logged(trainer, "objective/scores") == [0.25]


def test_a_conversation_goes_through_the_template(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def reward(**given: Any) -> list[float]:
        seen.update(given)
        return [0.0] * 8

    chat = tokenizer()
    template, chat.chat_template = chat.chat_template, "{% for m in messages %}{{ m.content }}!{% endfor %}"
    try:
        data = Dataset.from_dict({"prompt": [[{"role": "user", "content": "one"}]] * 8})
        make(tmp_path, parts={"reward_funcs": reward, "train_dataset": data}, max_steps=1).train()
    finally:
        chat.chat_template = template
    assert seen["prompts"][0] == [{"role": "user", "content": "one"}]
    assert seen["completions"][0][0]["role"] == "assistant"


# Bad input


@pytest.mark.parametrize(
    ("parts", "arguments", "words"),
    [
        ({"reward_funcs": None}, {}, r"reward_funcs=None and environment=None: give one of the two"),
        ({"reward_funcs": [3]}, {}, r"reward_funcs has 3: give functions"),
        ({"train_dataset": Dataset.from_dict({"text": ["a"]})}, {}, r"columns 'text', and no column 'prompt': rename"),
        ({"train_dataset": []}, {}, r"train_dataset is empty: give it at least one prompt"),
        ({"train_dataset": iter([])}, {}, r"train_dataset is a list_iterator, of no known length"),
        ({}, {"reward_weights": [1.0, 2.0]}, r"reward_weights=\[1.0, 2.0\]: give 1 of them"),
        ({}, {"cliprange": -1.0}, r"cliprange=-1.0: give a positive, finite number"),
        ({}, {"num_ppo_epochs": 0}, r"num_ppo_epochs=0: give a count of 1 or more"),
        ({}, {"vf_coef": -0.1}, r"vf_coef=-0.1: give a finite number, 0 or more"),
        ({}, {"max_completion_length": 63}, r"the prompt of row 0 has \d+ tokens, which with max_completion_length=63"),
    ],
)
def test_bad_input_is_named_with_its_remedy(tmp_path: Path, parts: Any, arguments: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        make(tmp_path, parts=parts, **arguments)


def test_bad_input_that_shows_as_it_trains(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 7 prompts, and a rollout takes 8: give more prompts, or lower"):
        make(tmp_path, parts={"train_dataset": PROMPTS.select(range(7))}).train()
    short = {"reward_funcs": lambda completions, **_: [1.0]}
    with pytest.raises(ValueError, match=r"<lambda> returned 1 rewards for 8 completions: return one for each"):
        make(tmp_path, parts=short).train()
    policy, head = model(), ValueHead(32)
    lacking, whole = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (policy, nn.ModuleList([policy, head])))
    with pytest.raises(ValueError, match=r"optimizers=\(SGD, \.\.\.\) lacks critic\.weight_D, which"):
        make(tmp_path, policy, parts={"value_model": head, "optimizers": (lacking, None)}).train()
    trainer = make(tmp_path, policy, parts={"value_model": head, "optimizers": (whole, None)}, value_warmup_steps=3)
    with pytest.raises(ValueError, match="value_warmup_steps=3: it needs the optimizer that PPOTrainer makes, and a"):
        trainer.train()
    with pytest.raises(ValueError, match="the reference shares parameters with the policy"):
        make(tmp_path, policy, parts={"ref_model": policy})


def test_total_episodes_sets_the_steps(tmp_path: Path) -> None:
    args = settings(tmp_path, total_episodes=33, num_mini_batches=2, num_ppo_epochs=3)
    assert args.max_steps == 3 * 6  # three rollouts of 16


# What a user may not think of


def test_a_checkpoint_of_16_bits_is_trained_in_32_and_a_model_of_16_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model().to(torch.bfloat16).save_pretrained(tmp_path / "half")
    parts = {"ref_model": str(tmp_path / "half"), "value_model": str(tmp_path / "half")}
    trainer = make(tmp_path, str(tmp_path / "half"), parts=parts)
    models = trainer.model.policy, trainer.reference, trainer.model.critic
    assert {p.dtype for one in models for p in one.parameters()} == {torch.float32}
    assert "16 bits" not in caplog.text
    kept = make(tmp_path, str(tmp_path / "half"), model_init_kwargs={"dtype": "bfloat16"})
    assert kept.model.policy.dtype == torch.bfloat16
    assert "weights are of 16 bits" in caplog.text


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"ref_model": 0, "peft_config": LoraConfig(r=2, target_modules="all-linear")}, "the reference shares"),
        ({"value_model": 0}, "the critic shares parameters with the policy"),
        (
            {"value_model": 0, "peft_config": LoraConfig(r=2, target_modules="all-linear")},
            "critic shares .* the policy",
        ),
        ({"value_model": 1, "ref_model": 1}, "the critic shares parameters with the reference"),
    ],
)
def test_models_given_twice_are_refused(tmp_path: Path, parts: dict[str, Any], words: str) -> None:
    """A number stands for a model: 0 for the policy, 1 for another."""
    both = model(), model()
    given = {name: both[part] if isinstance(part, int) else part for name, part in parts.items()}
    with pytest.raises(ValueError, match=words):
        make(tmp_path, both[0], parts=given)


@pytest.mark.parametrize(("part", "name"), [("ref_model", "reference"), ("value_model", "critic")])
def test_models_of_fewer_tokens_are_refused(tmp_path: Path, part: str, name: str) -> None:
    small = model()
    small.resize_token_embeddings(200)
    with pytest.raises(ValueError, match=f"the {name} knows 200 tokens, and the policy may write 264"):
        make(tmp_path, parts={part: small})


def test_reward_functions_of_one_name_count_each(tmp_path: Path) -> None:
    one, two = (lambda completions, worth=worth, **_: [worth] * len(completions) for worth in (1.0, 0.5))
    trainer = make(tmp_path, parts={"reward_funcs": [one, two]}, max_steps=1)
    trainer.train()
    assert logged(trainer, "objective/scores") == [1.5]
    assert (logged(trainer, "rewards/<lambda>/mean"), logged(trainer, "rewards/<lambda>_2/mean")) == ([1.0], [0.5])


def test_a_number_that_makes_a_name_its_own_is_one_that_is_free(tmp_path: Path) -> None:
    functions = [lambda completions, worth=worth, **_: [worth] * len(completions) for worth in (1.0, 2.0, 4.0)]
    for function, name in zip(functions, ("f", "f", "f_2"), strict=True):
        function.__name__ = name
    trainer = make(tmp_path, parts={"reward_funcs": functions}, max_steps=1)
    trainer.train()
    assert [logged(trainer, f"rewards/{name}/mean") for name in ("f", "f_2", "f_2_2")] == [[1.0], [2.0], [4.0]]


def test_problems_may_have_any_answer_and_rows_of_a_list_differ(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def reward(**given: Any) -> list[float]:
        seen.append(given)
        return [0.0] * 8

    problems = [Problem(f"one {i}", {"target": i}) for i in range(8)]
    rows = [{"prompt": f"one {i}", **({"hint": "x"} if i == 3 else {})} for i in range(8)]
    for data in (problems, rows):
        make(tmp_path, parts={"reward_funcs": reward, "train_dataset": data}, max_steps=1).train()
    assert sorted(answer["target"] for answer in seen[0]["answer"]) == list(range(8))
    assert sorted(hint or "" for hint in seen[1]["hint"]) == [*[""] * 7, "x"]


def test_what_counts_up_is_logged_as_it_is_now_and_a_second_run_begins_anew(tmp_path: Path) -> None:
    trainer = make(tmp_path, max_steps=6, logging_steps=4, lr_scheduler_type="linear")
    trainer.train()
    assert logged(trainer, "episode") == [4 * 8]  # the last two steps are never logged ...
    assert logged(trainer, "value_lr") == [pytest.approx(1e-2 * 3 / 6)]
    trainer.train()
    assert logged(trainer, "episode") == [4 * 8]  # ... and are not in the first log of the next run


def test_an_rl_step_that_a_callback_cuts_short_is_logged_as_one_that_the_run_s_end_does(tmp_path: Path) -> None:
    class Stops(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 6

    updates: dict[str, Any] = {"num_mini_batches": 2, "num_ppo_epochs": 2}
    stopped, ended = (
        make(tmp_path, parts={"callbacks": [Stops()]}, max_steps=12, **updates),
        make(tmp_path, max_steps=6, **updates),
    )
    for trainer in (stopped, ended):
        trainer.train()
    assert stopped.state.global_step == 6
    assert logged(stopped, "episode") == [16, 32]
    for name in ("objective/scores", "policy/kl", "loss/policy_avg"):
        assert logged(stopped, name) == logged(ended, name)


def test_a_critic_of_a_policy_whose_text_model_lies_within() -> None:
    """Gemma 3's config has no width of its own; and OPT's last states are not as wide as its layers."""
    opt = {"vocab_size": 40, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    for config in (
        seeing(40),
        OPTConfig(**opt, word_embed_proj_dim=16, max_position_embeddings=32),
    ):
        critic = ValueModel.copy_of(AutoModelForCausalLM.from_config(config)).eval()
        ids = torch.tensor([[3, 4, 5, 6]])
        assert critic(ids, torch.ones_like(ids), 2).tolist() == [[0.0, 0.0]]
