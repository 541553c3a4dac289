"""The advice: numbers a reader can check, a warning for each trap and none without it, and files of other programs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_warmup import Config, Regulator
from adaptive_warmup.advice import Plan, advise, read_plan
from adaptive_warmup.advice.files import read_settings
from adaptive_warmup.advice.foreign import TABLE
from adaptive_warmup.advice.nominal import bearable
from adaptive_warmup.advice.plan import KINDS
from adaptive_warmup.cli import main
from adaptive_warmup.history import DecisionLog, Run, read

CLEAN = Plan(
    lr=1e-6, total_steps=1000, kl_in="reward", kl_coef=0.001, kl_estimator="k1", kl_source="post_update", epochs=1,
    mini_batches=2, top_p=1.0, top_k=0, min_p=0.0, min_new_tokens=0, repetition_penalty=1.0, temperature=1.0, turns=4,
    tool_tokens_masked=True, reward_range=(0.0, 1.0), critic=True, dropout=0.0, beta2=0.99,
)  # fmt: skip
SEARCH_R1 = """
python3 -m verl.trainer.main_ppo \\
    data.train_batch_size=512 \\
    algorithm.adv_estimator=gae \\
    actor_rollout_ref.model.path=$BASE_MODEL \\
    actor_rollout_ref.actor.optim.lr=1e-6 \\
    actor_rollout_ref.actor.optim.lr_warmup_steps_ratio={ratio} \\
    actor_rollout_ref.actor.ppo_mini_batch_size=256 \\
    actor_rollout_ref.rollout.n_agent=1 \\
    actor_rollout_ref.rollout.temperature=1 \\
    actor_rollout_ref.actor.state_masking=true \\
    # actor_rollout_ref.rollout.top_k=20 \\
    {more} \\
    algorithm.kl_ctrl.kl_coef=0.001 \\
    +trainer.val_only=false \\
    trainer.total_training_steps={steps} \\
    max_turns=4
"""
V01 = SEARCH_R1.format(ratio=0.95, steps=305, more="")  # its top_p of .95 comes from the fork's own config
V02 = SEARCH_R1.format(ratio=0.285, steps=1005, more="actor_rollout_ref.rollout.top_p=1.0")
V03 = SEARCH_R1.format(
    ratio=0.285, steps=1005, more="actor_rollout_ref.rollout.top_p=1.0 reward_model.final_format_score=0.1"
)
V03_GRPO = (
    V03.replace("estimator=gae", "estimator=grpo").replace("lr=1e-6", "lr=5e-7").replace("n_agent=1", "n_agent=5")
    + " actor_rollout_ref.actor.use_kl_loss=true actor_rollout_ref.actor.kl_loss_coef=0.001"
    " actor_rollout_ref.actor.kl_loss_type=low_var_kl"
)


def written(folder: Path, text: str | dict[str, Any], name: str = "run.sh") -> Path:
    path = folder / name
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def warned(plan: Plan) -> list[str]:
    return [caution.setting for caution in advise(plan).warnings]


def reasons(plan: Plan) -> str:
    return "\n".join(reason.text for reason in advise(plan).reasons)


@pytest.mark.parametrize(
    ("script", "warmup", "planned", "settings"),
    [
        (V01, 92, 289, ["top_p", "warmup", "epochs x mini_batches"]),
        (V02, 302, 286, ["epochs x mini_batches"]),
        (V03, 302, 286, ["epochs x mini_batches"]),
    ],
)
def test_search_r1(tmp_path: Path, script: str, warmup: int, planned: int, settings: list[str]) -> None:
    """30 % of the run: 10, and 5 each for KL in the reward, critic, turns, and a sparse reward."""
    plan = read_plan(written(tmp_path, script))
    assert plan.planned_warmup == planned
    assert f"that is {planned} steps" in reasons(plan)
    assert ".95 of 305 is 289 and its later .285 of 1005 is 286" in reasons(plan)
    assert (plan.kl_in, plan.kl_estimator, plan.updates_per_rollout, plan.critic) == ("reward", "k1", 2, True)
    assert plan.untuned_warmup == 1000  # 2000 updates, two a step
    advice = advise(plan)
    assert (advice.warmup_steps, advice.target_kl) == (warmup, 0.01)
    assert [caution.setting for caution in advice.warnings] == settings
    assert advice.on_gaming == ("stop" if "top_p" in settings else "hold")


def test_the_critics_warmup_is_15_steps_in_both_settings(tmp_path: Path) -> None:
    assert int(0.05 * 305) == int(0.015 * 1005) == 15
    for script in (V01, V02):
        assert "15 steps in Search-R1 (.05 of 305, .015 of 1005)" in reasons(read_plan(written(tmp_path, script)))


def test_the_untuned_warmup_is_a_note_and_a_warning_only_where_it_is_planned() -> None:
    """2000 updates at Adam's default, in a run of 305: no length to take, but nothing to mend."""
    plan = Plan(lr=1e-6, total_steps=305, beta2=0.999)
    assert warned(plan) == []
    assert "2000 updates, here 2000 steps, more than the run's 305: no length to take" in reasons(plan)
    assert "more than the run's" not in reasons(replace(plan, total_steps=3000))
    short = replace(plan, warmup_ratio=0.95, host="transformers")
    assert [("leaves 15 steps at it" in caution.why) for caution in advise(short).warnings] == [True]
    (caution,) = advise(replace(plan, warmup_steps=2000, host="transformers")).warnings
    assert "2/(1-beta2) = 2000 updates, beyond the run's end at 305" in caution.why
    assert caution.source == "Ma & Yarats 2021, arXiv 1910.04209"
    assert warned(replace(plan, total_steps=9000, warmup_steps=2000, host="transformers")) == []


def test_search_r1_grpo_has_ten_updates_a_rollout_and_its_k3_hides_the_sign(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, V03_GRPO))
    assert {"top_p", "kl_estimator"}.isdisjoint(warned(plan))
    plan = read_plan(written(tmp_path, V03_GRPO.replace("rollout.top_p=1.0", "rollout.top_p=0.95")))
    assert (plan.kl_in, plan.kl_estimator, plan.critic, plan.lr) == ("loss", "k3", False, 5e-7)
    assert (plan.batch_size, plan.updates_per_rollout) == (2560, 10)
    assert advise(plan).target_kl == 0.02
    assert {"top_p", "kl_estimator"} <= set(warned(plan))
    assert advise(plan).on_gaming == "hold"  # in the loss, k3 pays nobody


def test_a_clean_plan_has_no_warning() -> None:
    assert advise(CLEAN).warnings == ()
    assert advise(Plan(lr=1e-6, total_steps=100)).warnings == ()


@pytest.mark.parametrize(
    ("setting", "change"),
    [
        ("top_p", {"top_p": 0.95}),
        ("top_k", {"top_k": 50}),
        ("min_p", {"min_p": 0.1}),
        ("min_new_tokens", {"min_new_tokens": 10}),
        ("repetition_penalty", {"repetition_penalty": 1.1}),
        ("temperature", {"temperature": 0.7}),
        ("temperature", {"temperature": 1.0, "logprob_temperature": 0.7}),
        ("tool_tokens_masked", {"tool_tokens_masked": False}),
        ("tool_tokens_masked", {"tool_tokens_masked": None}),
        ("dropout", {"dropout": 0.1}),
        ("kl_coef", {"kl_coef": 0.0}),
        ("kl_coef", {"kl_coef": 0.3}),
        ("lr", {"lr": 5e-5}),
        ("lr", {"lr": 1e-8}),
        ("lr", {"lr": 1e-7, "lora": True}),
        ("warmup", {"beta2": 0.9995, "warmup_steps": 2000, "host": "transformers"}),  # 4000 updates, two a step
        ("warmup", {"warmup_steps": 20}),
        ("epochs x mini_batches", {"kl_source": None}),
        ("epochs x mini_batches", {"kl_source": "in_loop", "mini_batches": 1}),
        ("epochs x mini_batches", {"kl_source": "in_loop", "mini_batches": 8}),
    ],
)
def test_each_trap_is_named_with_its_value_and_remedy(setting: str, change: dict[str, Any]) -> None:
    (caution,) = advise(replace(CLEAN, **change)).warnings
    assert caution.setting == setting
    assert caution.why
    assert caution.remedy
    assert caution.source
    if len(change) == 1 and (value := next(iter(change.values()))) is not None and setting in change:
        assert caution.value == str(value).lower() or float(caution.value) == value


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.7, "logprob_temperature": 0.7},
        {"turns": 1, "tool_tokens_masked": None},
        {"top_p": 0.9, "kl_in": "none"},
        {"kl_coef": 0.3, "reward_range": (0.0, 10.0)},
        {"lr": 5e-5, "lora": True},
        {"warmup_steps": 20, "host": "transformers"},
        {"warmup_steps": 20, "host": "verl"},
        {"kl_source": "in_loop:1x2"},
        {"kl_source": None, "mini_batches": 8},
        {"kl_coef": 0.0, "kl_in": "none"},
    ],
)
def test_what_is_no_trap_is_left_alone(change: dict[str, Any]) -> None:
    assert warned(replace(CLEAN, **change)) == []


@pytest.mark.parametrize(
    ("below", "setting", "change"),
    [
        ({"kl_coef": 0.1}, "kl_coef", {"kl_coef": 0.11}),  # a tenth of the task reward's range
        ({"warmup_steps": 499, "host": "verl"}, "warmup", {"warmup_steps": 500, "host": "verl"}),  # half of the run
        ({"lr": 5e-6}, "lr", {"lr": 5.1e-6}),
    ],
)
def test_where_a_trap_begins(below: dict[str, Any], setting: str, change: dict[str, Any]) -> None:
    assert warned(replace(CLEAN, **below)) == []
    assert warned(replace(CLEAN, **change)) == [setting]


def test_the_run_is_to_stop_over_a_kl_reward_that_can_be_gamed_and_over_nothing_else() -> None:
    assert advise(replace(CLEAN, top_p=0.9)).on_gaming == "stop"
    for change in ({}, {"dropout": 0.1}, {"top_p": 0.9, "kl_in": "loss"}):
        assert advise(replace(CLEAN, **change)).on_gaming == "hold"


def test_few_responses_make_a_noisy_kl() -> None:
    assert "31 responses in all: k3 on so few is noisy" in reasons(replace(CLEAN, batch_size=31))
    assert "is noisy" not in reasons(replace(CLEAN, batch_size=32))


def test_k3_hides_a_negative_k1_only_where_there_can_be_one() -> None:
    assert warned(replace(CLEAN, kl_estimator="k3")) == []
    assert warned(replace(CLEAN, kl_estimator="abs", top_k=20)) == ["top_k", "kl_estimator"]


@pytest.mark.parametrize(("kl_in", "earns"), [("reward", "and driving it"), ("loss", None), (None, "; where the KL")])
def test_only_a_kl_in_the_reward_can_pay(kl_in: Any, earns: str | None) -> None:
    (caution,) = advise(replace(CLEAN, kl_in=kl_in, top_p=0.9)).warnings
    assert ("earns reward" in caution.why) == (earns is not None)
    assert (earns or "is biased") in caution.why


def test_a_warmup_given_twice() -> None:
    plan = replace(CLEAN, warmup_steps=50, warmup_ratio=0.2, host="transformers")
    (caution,) = advise(plan).warnings
    assert caution.value == "50 steps and ratio 0.2"
    assert "the steps win over the ratio's 200" in caution.why
    assert plan.planned_warmup == 50


@pytest.mark.parametrize(
    ("change", "target"),
    [
        ({}, 0.01),
        ({"epochs": 4}, 0.01),  # 8 updates
        ({"epochs": 5}, 0.02),  # 10
        ({"epochs": None, "mini_batches": None}, 0.01),
        ({"kl_in": "none", "mini_batches": 1}, 0.003),
        ({"task": "finetuning"}, 0.003),
        ({"task": "pretraining"}, 0.01),
    ],
)
def test_target_kl(change: dict[str, Any], target: float) -> None:
    assert advise(replace(CLEAN, **change)).target_kl == target


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ({}, 250),  # 10 % + KL in the reward, critic, turns
        ({"total_steps": 10}, 10),  # no more than the run
        ({"total_steps": 30}, 10),  # no first update above a tenth of the peak
        ({"total_steps": 10**6}, 1000),
        ({"sparse_reward": True, "reward_range": (-50.0, 50.0), "epochs": 4}, 300),  # 40 %, but 30 at most
        ({"task": "finetuning"}, 100),
        ({"kl_in": "loss", "critic": False, "turns": 1}, 100),
    ],
)
def test_nominal_warmup(change: dict[str, Any], steps: int) -> None:
    advice = advise(replace(CLEAN, **change))
    assert advice.warmup_steps == steps
    assert advice.config == Config(steps, advice.target_kl)


def logged(path: Path, bears: float, later: float = 1.0, gaming: bool = False, law: str = "feedback") -> Run:
    """A run at lr 1e-3 or so, of which an lr of `bears` makes a KL of .01 (so one of `bears` / 10 makes .0001).

    From step 8 on it bears `later` times as much.
    """
    regulator = Regulator(Config(10, law=law))
    with DecisionLog(path, regulator.config, arm="before") as log:
        for step in range(20):
            lr, borne = 1e-3 * regulator.decision.factor, bears * (later if step >= 8 else 1.0)
            regulator.observe(kl=0.01 * (lr / borne) ** 2, kl_reward=2.0 + 0.1 * lr if gaming else -0.1)
            regulator.decide()
            log.write(regulator, lr=lr)
    return read(path)


@pytest.mark.parametrize("law", ["feedback", "linear"])
def test_an_earlier_run_says_what_lr_it_bore(tmp_path: Path, law: str) -> None:
    plan = replace(CLEAN, total_steps=100, logs=(logged(tmp_path / "a.jsonl", bears=1e-7, law=law),))
    assert advise(replace(plan, lr=1e-7)).warmup_steps == 25  # as without the log
    advice = advise(replace(plan, lr=3.95e-6))
    assert advice.warmup_steps == 40  # the first update below the 1e-7 that the run bore
    assert "bore about 1e-07" in next(caution.why for caution in advice.warnings if caution.setting == "lr")


def test_an_earlier_run_is_asked_how_it_began_for_the_warmup_and_how_it_was_for_the_lr(tmp_path: Path) -> None:
    plan = replace(CLEAN, total_steps=100, logs=(logged(tmp_path / "a.jsonl", bears=1e-7, later=20.0),))
    advice = advise(replace(plan, lr=3.95e-6))
    assert advice.warmup_steps == 40
    assert "lr" not in [caution.setting for caution in advice.warnings]  # below twice the 2e-6 of the most steps
    assert "lr" in warned(replace(plan, lr=4.05e-6))


def test_an_earlier_run_whose_kl_was_gamed(tmp_path: Path) -> None:
    plan = replace(CLEAN, logs=(logged(tmp_path / "a.jsonl", bears=1e-3, gaming=True),))
    assert warned(plan) == ["earlier run"]


OPTIONAL = {"kl_in": [None, "reward", "loss", "none"], "turns": [None, 1, 5], "critic": [None, False, True],
            "sparse_reward": [None, True], "epochs": [None, 1, 4], "mini_batches": [None, 1, 2, 16],
            "top_p": [None, 0.9, 1.0], "beta2": [None, 0.95, 0.999], "warmup_ratio": [None, 0.0, 0.5, 1.0],
            "task": ["rl", "finetuning", "pretraining"], "schedule": [None, "constant", "cosine"],
            "reward_range": [None, (0.0, 1.0), (-100.0, 1.0)], "kl_coef": [None, 0.0, 0.01, 1.0]}  # fmt: skip
plans = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in OPTIONAL.items()}).flatmap(
    lambda settings: st.builds(
        lambda lr, steps: Plan(lr=lr, total_steps=steps, **settings), st.floats(1e-12, 10.0), st.integers(1, 10**5)
    )
)


@given(plans)
def test_any_plan_gets_settings_that_the_controller_takes(plan: Plan) -> None:
    advice = advise(plan)
    assert 1 <= advice.warmup_steps <= plan.total_steps
    assert advice.config.target_kl == advice.target_kl
    assert all(all(map(str, part)) for part in (*advice.reasons, *advice.warnings))
    assert advise(plan) == advice


@given(plans, st.sampled_from([{"kl_in": "reward"}, {"critic": True}, {"turns": 6}, {"sparse_reward": True}]))
def test_a_harder_task_never_gets_a_shorter_nominal_warmup(plan: Plan, harder: dict[str, Any]) -> None:
    assert advise(replace(plan, **harder)).warmup_steps >= advise(plan).warmup_steps


@given(plans, st.floats(1e-3, 1e3))
def test_the_warmup_does_not_depend_on_the_lr(plan: Plan, scale: float) -> None:
    assert advise(replace(plan, lr=plan.lr * scale)).warmup_steps == advise(plan).warmup_steps


def test_verls_yaml_as_hydra_dumps_it(tmp_path: Path) -> None:
    text = """
actor_rollout_ref:
  actor:
    optim: {lr: 1e-6, lr_warmup_steps: -1, lr_warmup_steps_ratio: 0.1, betas: [0.9, 0.95], lr_scheduler_type: cosine}
    ppo_mini_batch_size: 128
    ppo_epochs: 2
    use_kl_loss: false
    ulysses_sequence_parallel_size: ${actor_rollout_ref.ulysses}
  rollout: {n: 4, temperature: 0.7, top_p: 1, top_k: -1, multi_turn: {enable: true, max_assistant_turns: 3}}
  model: {lora_rank: 32}
algorithm: {adv_estimator: grpo, use_kl_in_reward: true, kl_penalty: abs, kl_ctrl: {kl_coef: 0.01}}
data: {train_batch_size: 256}
trainer: {total_training_steps: 200}
"""
    plan = read_plan(written(tmp_path, text, "config.yaml"))
    assert plan.given == {
        "lr": 1e-6, "total_steps": 200, "warmup_ratio": 0.1, "schedule": "cosine", "beta2": 0.95, "batch_size": 1024,
        "mini_batches": 2, "epochs": 2, "updates_per_step": 4, "kl_in": "reward", "kl_coef": 0.01,
        "kl_estimator": "abs", "top_p": 1.0, "top_k": -1, "temperature": 0.7, "logprob_temperature": 0.7, "turns": 3,
        "tool_tokens_masked": True, "critic": False, "lora": True, "task": "rl", "host": "verl",
    }  # fmt: skip
    assert plan.untuned_warmup == 10  # 40 updates, 4 a step


@pytest.mark.parametrize(
    ("switches", "kl_in"),
    [
        ("algorithm.use_kl_in_reward=false algorithm.kl_ctrl.kl_coef=0.1", "none"),
        ("algorithm.use_kl_in_reward=False actor_rollout_ref.actor.use_kl_loss=True", "loss"),
        ("algorithm.kl_ctrl.kl_coef=0.1", "reward"),
        ("", None),
    ],
)
def test_where_verl_puts_the_kl(tmp_path: Path, switches: str, kl_in: str | None) -> None:
    text = f"actor_rollout_ref.actor.optim.lr=1e-6 trainer.total_training_steps=9 {switches}"
    assert read_plan(written(tmp_path, text)).kl_in == kl_in


def test_a_mini_batch_of_more_than_the_rollout_is_one_of_all(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, V02.replace("train_batch_size=512", "train_batch_size=128")))
    assert (plan.batch_size, plan.mini_batches, plan.updates_per_step) == (128, 1, 1)


def test_override_lines_quoted_listed_and_unresolved(tmp_path: Path) -> None:
    lines = [
        "'actor_rollout_ref.actor.optim.betas=[0.9, 0.99]'",
        '++actor_rollout_ref.actor.optim.lr="2e-6"\\',
        "# trainer.total_training_steps=7",
        "trainer.total_training_steps=$STEPS",
        "data.shuffle=null",
    ]
    found = read_settings(written(tmp_path, "\n".join(lines)))
    assert (float(found.settings["lr"]), float(found.settings["beta2"])) == (2e-6, 0.99)
    assert "total_steps" not in found.settings
    assert found.ignored == ("trainer.total_training_steps=$STEPS",)
    listed = written(tmp_path, json.dumps(["actor_rollout_ref.actor.optim.lr=2e-6"]), "overrides.yaml")
    assert read_settings(listed).settings["lr"] == "2e-6"


GRPO = {"learning_rate": 1e-6, "max_steps": 500, "num_generations": 8, "num_iterations": 2, "beta": 0.04,
        "gradient_accumulation_steps": 4, "steps_per_generation": 8, "temperature": 0.9, "warmup_steps": 0.1,
        "generation_kwargs": {"min_new_tokens": 5}, "adam_beta2": 0.99, "use_peft": True}  # fmt: skip


def test_trls_grpo(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, GRPO, "grpo.json"))
    assert (plan.kl_in, plan.kl_coef, plan.kl_estimator, plan.task) == ("loss", 0.04, "k3", "rl")
    assert (plan.updates_per_rollout, plan.untuned_warmup) == (4, 200)  # its steps are updates
    assert (plan.warmup_ratio, plan.planned_warmup, plan.lora, plan.critic) == (0.1, 50, True, False)
    assert warned(plan) == ["min_new_tokens", "kl_estimator"]  # the callback measures the KL itself, after the update
    assert warned(replace(plan, kl_source="in_loop"))[2:] == ["epochs x mini_batches"]


def test_trls_rloo_and_ppo(tmp_path: Path) -> None:
    rloo = read_plan(written(tmp_path, GRPO | {"normalize_advantages": False}, "rloo.json"))
    assert (rloo.kl_in, rloo.kl_estimator) == ("reward", "k1")
    silent = read_plan(written(tmp_path, GRPO | {"beta": 0.0}, "grpo.json"))
    assert (silent.kl_in, silent.kl_coef) == ("none", None)
    ppo = "learning_rate: 3e-6\nnum_ppo_epochs: 4\nnum_mini_batches: 2\nkl_coef: 0.05\nnum_total_batches: 100\n"
    plan = read_plan(written(tmp_path, ppo, "ppo.yml"))
    assert (plan.lr, plan.kl_in, plan.kl_estimator, plan.critic) == (3e-6, "reward", "k1", True)
    assert (plan.total_steps, plan.updates_per_rollout, plan.updates_per_step) == (100, 8, 8)


def test_the_installed_training_arguments(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    arguments = TrainingArguments(str(tmp_path), max_steps=405, warmup_steps=0.05, learning_rate=2e-5, report_to=[])
    plan = read_plan(written(tmp_path, arguments.to_json_string(), "arguments.json"))
    assert (plan.lr, plan.total_steps, plan.task, plan.host) == (2e-5, 405, "finetuning", "transformers")
    assert plan.planned_warmup == arguments.get_warmup_steps(405) == 21  # rounded up, where verl rounds down
    assert (plan.beta2, plan.untuned_warmup) == (0.999, 2000)
    assert warned(plan) == []


def test_the_table_leads_to_settings() -> None:
    for table in TABLE.values():
        assert all(name in KINDS or name.startswith(".") for name in table.values())


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.json", '{"alpha": 1}', "looked for verl's"),
        ("x.json", "{", "cannot be read as json"),
        ("x.yaml", "a: [", "cannot be read as yaml"),
        ("x.yaml", "text", "holds str"),
        ("x.sh", "echo hello", "looked for verl's"),
        ("x.json", '{"learning_rate": "much", "max_steps": 5}', "lr='much': give a positive number"),
        ("x.json", '{"learning_rate": 1e-6, "max_steps": -1}', "total_steps is not known: give --total-steps"),
        ("x.json", '{"max_steps": 5}', "lr is not known: give --lr"),
        ("x.json", '{"learning_rate": 1e-6, "max_steps": 2.5}', "max_steps=2.5: give a whole number"),
        ("x.sh", "actor_rollout_ref.actor.optim.betas=0.9", "betas='0.9': give two numbers"),
        ("x.sh", "actor_rollout_ref.rollout.n=no", "n='no': give a whole number, 1 or more"),
    ],
)
def test_a_bad_file_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, words: str
) -> None:
    assert main(["advise", str(written(tmp_path, text, name))]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [("lr", 0.0), ("lr", float("nan")), ("total_steps", 0), ("total_steps", 2.5), ("top_p", 1.5), ("beta2", 1.0),
     ("kl_in", "somewhere"), ("reward_range", (1.0, 0.0)), ("critic", "perhaps"), ("warmup_ratio", -0.1),
     ("mini_batches", True)],
)  # fmt: skip
def test_a_bad_setting_is_quoted_with_what_to_give(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{setting}=.*: give .*\.$"):
        replace(CLEAN, **{setting: value})


def test_the_command_flags_override_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(written(tmp_path, V01))
    assert main(["advise", path, "--plain"]) == 1
    shown = capsys.readouterr().out
    options = ("warmup_steps=92", "target_kl=0.01", "on_gaming=stop")
    assert shown.split()[:3] == [f"+adaptive_warmup.actor.{option}" for option in options]
    assert "top_p = 0.95" in shown
    assert "ignored" not in shown
    flags = ["--top-p", "1", "--beta2", "0.95", "--warmup-ratio", "0", "--kl-source", "post_update"]
    assert main(["advise", path, *flags, "--plain", "-v"]) == 0
    shown = capsys.readouterr().out
    assert "0 warnings" in shown
    assert "trainer.val_only" in shown.split("ignored: ")[1]


def test_the_command_in_json_and_with_rich(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged(tmp_path / "a.jsonl", bears=1e-7)
    flags = ["--lr", "3.95e-6", "--total-steps", "100", "--reward-range", "-1", "1", "--log", str(tmp_path / "a.jsonl")]
    assert main(["advise", *flags, "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert (content["warmup_steps"], content["target_kl"]) == (40, 0.01)
    assert content["plan"] == {"lr": 3.95e-6, "total_steps": 100, "reward_range": [-1.0, 1.0], "task": "rl"}
    assert [caution["setting"] for caution in content["warnings"]] == ["lr"]
    assert main(["advise", *flags]) == 1
    assert "40 steps instead" in capsys.readouterr().out


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["advise", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "Exit code: 0 no warning, 1 warnings, 2 bad input." in shown
    assert all(f"--{name.replace('_', '-')}" in shown for name in KINDS)


def test_a_batch_is_that_of_all_processes_or_not_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TRL's generation_batch_size is; 8 rows on each device are 8, or 512 on 64 devices, in one update or in many."""
    grpo = {name: value for name, value in GRPO.items() if name != "steps_per_generation"}
    whole = grpo | {"per_device_train_batch_size": 8, "generation_batch_size": 512}
    for settings, batch, updates in [
        (whole | {"steps_per_generation": 8, "gradient_accumulation_steps": 2}, 512, 8),  # 2 iterations of 4
        (whole, 512, None),
        (grpo | {"per_device_train_batch_size": 8}, None, 2),
        ({"task": "search", "learning_rate": 1e-6, "max_steps": 99, "num_mini_batches": 2,
          "per_device_train_batch_size": 8}, None, 2),
    ]:  # fmt: skip
        plan = read_plan(written(tmp_path, settings, "run.json"))
        assert (plan.batch_size, plan.updates_per_rollout) == (batch, updates)
    main(["advise", "--lr", "1e-6", "--total-steps", "99", "--batch-size", "8", "--plain"])
    assert "8 responses in all: k3 on so few is noisy" in capsys.readouterr().out


def test_an_earlier_run_that_bore_next_to_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first update would have to be 1 / infinity of the peak: the warmup is the whole run."""
    regulator = Regulator(Config(10))
    with DecisionLog(tmp_path / "run.jsonl", regulator.config) as log:
        for _ in range(9):
            regulator.observe(kl=0.01)
            regulator.decide()
            log.write(regulator, lr=1e-320)
    assert main(["advise", "--lr", "1e-6", "--total-steps", "99", "--log", str(tmp_path / "run.jsonl"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["warmup_steps"] == 99


def test_a_folder_is_no_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--lr", "1e-6", "--total-steps", "99", "--log", str(tmp_path)]) == 2
    assert f"adaptive-warmup: '{tmp_path}' is a folder: name a file in it\n" == capsys.readouterr().err


def test_our_own_ppo_is_told_from_trls(tmp_path: Path) -> None:
    """As `adaptive-warmup train --config` reads it: the schedule steps once an update, the KL is where it says."""
    own = {"task": "search", "learning_rate": 1e-6, "max_steps": 1000, "num_ppo_epochs": 4, "num_mini_batches": 4}
    plan = read_plan(written(tmp_path, own | {"adam_beta2": 0.999}, "run.json"))
    assert (plan.kl_in, plan.kl_estimator, plan.updates_per_rollout, plan.untuned_warmup) == ("reward", "k1", 16, 2000)
    loss = own | {"kl_in": "loss", "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "lora_r": 8}
    plan = read_plan(written(tmp_path, loss, "run.json"))
    assert (plan.kl_in, plan.kl_estimator, plan.lora) == ("loss", "k3", True)
    assert read_plan(written(tmp_path, loss | {"lora_r": 0}, "run.json")).lora is None
    trl = {name: value for name, value in own.items() if name != "task"}
    assert read_plan(written(tmp_path, trl, "run.json")).updates_per_step == 16


@pytest.mark.parametrize(("late", "source", "bears"), [(False, "post_update", 4e-6), (True, "post_update", 4e-6),
                                                       (False, "training_probe", 4e-6 * 3**0.5),
                                                       (False, "in_loop", None)])  # fmt: skip
def test_what_an_earlier_run_bore_is_of_the_kls_source_and_of_its_step(
    tmp_path: Path, late: bool, source: str, bears: float | None
) -> None:
    """The KL of a step is .003 (lr / 4e-6)^2, exactly; what is measured in plain training counts a third.

    What is read within the loop is good to a factor of some, and is not taken for what a run bore.
    """
    regulator, before = Regulator(Config(20, 0.003, min_warmup_steps=20)), None
    with DecisionLog(tmp_path / "run.jsonl", regulator.config) as log:
        for _ in range(12):
            step, lr = regulator.decision.step, 1e-5 * regulator.decision.factor
            of, at = before if late and before else (step, lr)
            if not late or before:
                regulator.observe(kl=0.003 * (at / 4e-6) ** 2, kl_source=source, of_step=of)
            before = step, lr
            regulator.decide()
            log.write(regulator, lr=lr)
    known = [bears] * (11 if late else 12) if bears else []
    assert bearable(read(tmp_path / "run.jsonl"), 0.003) == pytest.approx(known)


def test_files_of_other_encodings_and_folders(tmp_path: Path) -> None:
    path, settings = tmp_path / "a.json", json.dumps({"learning_rate": 1e-6, "max_steps": 100})
    path.write_text(settings, encoding="utf-8-sig")
    assert read_settings(path).settings["lr"] == 1e-6
    path.write_text(settings, encoding="utf-16")
    for bad in (path, tmp_path):
        with pytest.raises(ValueError, match=rf"{bad.name}: give a file of settings, in UTF-8"):
            read_settings(bad)
