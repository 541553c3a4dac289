"""Runs of the past in the formats that people have: what is taken as what, in which unit, and what is said of the rest.

Files of transformers and TensorBoard are written by them; `runs/offline.wandb` was written by wandb 0.31 offline.
"""

from __future__ import annotations

import csv
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import Trainer, TrainingArguments

from adaptive_warmup import Config, Regulator
from adaptive_warmup.history import DecisionLog
from adaptive_warmup.lines import LONGEST
from adaptive_warmup.readers import Found, keys, read
from adaptive_warmup.readers.unfit import UNFIT, unfit
from adaptive_warmup.signals import NAMES
from tests.integrations.trainers import Line, rows

OFFLINE = Path(__file__).parent / "runs" / "offline.wandb"
STEPS = 30


def column(found: Found, signal: str) -> list[float | None]:
    return [found.past.columns[signal].at(row) for row in range(len(found.past.steps))]


def taken(found: Found) -> dict[str, str]:
    return {one.signal: one.key for one in found.past.taken}


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def jsonl(path: Path, contents: list[dict[str, Any]]) -> Path:
    return write(path, [json.dumps(content) for content in contents])


def verl(step: int) -> dict[str, float]:
    """A step as verl logs it; `actor/lr` is that of the next step, of a warmup over 10 steps to 1e-6."""
    return {
        "actor/ppo_kl": 0.001 * step,
        "actor/grad_norm": 1.5,
        "actor/lr": min(step / 10, 1.0) * 1e-6,
        "critic/lr": 1e-5,
        "critic/kl": -0.25,
        "critic/score/mean": 0.5,
        "critic/rewards/mean": 0.5 - 0.01 * step,
        "response_length/mean": 200.0,
    }


def line(values: dict[str, float], step: int, form: str = "{}") -> str:
    return " - ".join([f"step:{step}", *(f"{key}:{form.format(value)}" for key, value in values.items())])


# --- transformers and TensorBoard ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run: warmup over 10 of 30 steps to 0.01, every step logged, also to TensorBoard."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, learning_rate=0.01, warmup_steps=10, lr_scheduler_type="constant_with_warmup",
        logging_steps=1, save_steps=10, report_to=["tensorboard"], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(Line(), arguments, train_dataset=rows())
    trainer.train()
    trainer.save_state()
    return folder


def test_trainer_state(trained: Path) -> None:
    found = read(trained / "trainer_state.json")
    assert taken(found) == {"grad_norm": "grad_norm", "lr": "learning_rate", "loss": "loss"}
    assert found.past.steps.tolist() == list(range(1, STEPS + 1))
    assert column(found, "lr") == pytest.approx([0.01 * min(t / 10, 1.0) for t in range(STEPS)])
    assert not found.notes


def test_a_trainers_folder_stands_for_its_state(trained: Path, tmp_path: Path) -> None:
    assert read(trained).path == trained / "trainer_state.json"
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(
            (trained / "checkpoint-10" / "trainer_state.json").read_text()
        )
    for run in ("first", "resumed"):  # several runs' event files leave it open which is meant; its checkpoints do not
        events(tmp_path / "runs" / run, range(3), 0.5)
    found = read(tmp_path)
    assert found.path.parent.name == "checkpoint-10"
    assert len(found.past.steps) == 10


def test_event_files_of_the_same_run_say_the_same(trained: Path) -> None:
    state, events = read(trained / "trainer_state.json"), read(trained / "runs")
    assert taken(events) == {"grad_norm": "train/grad_norm", "lr": "train/learning_rate", "loss": "train/loss"}
    assert events.past.steps.tolist() == state.past.steps.tolist()
    for signal in ("grad_norm", "lr", "loss"):
        assert column(events, signal) == pytest.approx(column(state, signal), rel=1e-6)  # they keep 32 bits


def test_a_trainer_state_that_breaks_off_gives_what_is_whole(trained: Path, tmp_path: Path) -> None:
    text = (trained / "trainer_state.json").read_text()
    cut = text.index('"step": 21')
    (tmp_path / "trainer_state.json").write_text(text[:cut])
    found = read(tmp_path)
    assert found.past.steps.tolist() == list(range(1, 21))
    broken_on = text[: text.rindex("{", 0, cut)].count("\n") + 1
    assert found.notes == [f"line {broken_on}: no whole JSON from here on; what comes before is used"]


def test_a_trainer_state_on_one_line_and_an_array_of_objects(trained: Path, tmp_path: Path) -> None:
    state = json.loads((trained / "trainer_state.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({"padding": "x" * LONGEST, **state}))  # longer than a line may be
    (tmp_path / "b.json").write_text(json.dumps(state["log_history"]))
    whole = column(read(trained), "loss")
    assert column(read(tmp_path / "a.json"), "loss") == whole
    assert column(read(tmp_path / "b.json"), "loss") == whole


def events(folder: Path, steps: range, score: float) -> None:
    with SummaryWriter(str(folder)) as writer:
        for step in steps:
            writer.add_scalar("objective/scores", score, step)
            writer.add_text("sample", "step:1 - actor/ppo_kl:9", step)
            writer.add_histogram("loss", torch.arange(4.0), step)


def test_a_resumed_run_in_two_event_files(tmp_path: Path) -> None:
    events(tmp_path, range(10), 0.25)
    (first,) = tmp_path.iterdir()
    first.rename(tmp_path / "events.out.tfevents.1000.a")
    events(tmp_path, range(6, 12), 0.75)
    found = read(tmp_path)
    assert column(found, "task_reward") == [0.25] * 6 + [0.75] * 6
    assert taken(found) == {"task_reward": "objective/scores"}
    assert "the steps go back" in found.notes[0]
    assert "step 6" in found.notes[0]


def test_an_event_file_that_breaks_off(tmp_path: Path) -> None:
    events(tmp_path, range(10), 0.5)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert 2 < len(read(file).past.steps) < 10


def test_a_folder_of_several_runs_is_refused(tmp_path: Path) -> None:
    events(tmp_path / "one", range(3), 0.5)
    events(tmp_path / "two", range(3), 0.5)
    with pytest.raises(ValueError, match=r"several runs \(one, two\)"):
        read(tmp_path)
    assert len(read(tmp_path / "two").past.steps) == 3


# --- verl and Search-R1 ---

DRESSES = {
    "plain": "{}",
    "ray": "(main_task pid=123) {}",
    "colours": "\x1b[36m(TaskRunner pid=123, ip=10.0.0.1)\x1b[0m {}",
    "timestamp": "2025-03-14 10:11:12,345 INFO {}",
    "progress": "Training:   3%|3         | 3/305 [01:02<1:23:45]\r{}",
    "repeated": "{} [repeated 2x across cluster]",
}


@pytest.mark.parametrize("dress", DRESSES)
@pytest.mark.parametrize("number", ["{}", "np.float64({})"])
def test_the_console_log_of_verl(tmp_path: Path, dress: str, number: str) -> None:
    talk = ["(main_task pid=123) {'actor_rollout_ref': {'lr': 1e-6}}", "<answer> a - b, step:by step </answer>"]
    steps = [DRESSES[dress].format(line(verl(step), step, number)) for step in range(1, 21)]
    found = read(write(tmp_path / "run.log", [talk[0], *steps[:10], talk[1], *steps[10:]]))
    assert taken(found) == {
        "kl": "actor/ppo_kl",
        "reference_kl": "critic/kl",
        "task_reward": "critic/score/mean",
        "grad_norm": "actor/grad_norm",
        "lr": "actor/lr",
        "kl_reward": "critic/rewards/mean - critic/score/mean",
    }
    assert column(found, "kl") == pytest.approx([0.001 * step for step in range(1, 21)])
    assert column(found, "kl_reward") == pytest.approx([-0.01 * step for step in range(1, 21)])
    assert column(found, "reference_kl") == [-0.25] * 20
    assert found.past.kl_sources[0] == "in_loop"
    assert not found.notes


def test_the_lr_of_verl_is_that_of_the_next_step(tmp_path: Path) -> None:
    found = read(write(tmp_path / "run.log", [line(verl(step), step) for step in range(1, 13)]))
    lrs = column(found, "lr")
    assert lrs[0] is None
    assert lrs[1:] == pytest.approx([min(step / 10, 1.0) * 1e-6 for step in range(1, 12)])


def test_the_file_log_of_verl_says_the_same_as_its_console(tmp_path: Path) -> None:
    console = read(write(tmp_path / "run.log", [line(verl(step), step) for step in range(1, 21)]))
    file = read(jsonl(tmp_path / "run.jsonl", [{"step": step, "data": verl(step)} for step in range(1, 21)]))
    assert file.past.taken == console.past.taken
    for signal in file.past.columns:
        assert column(file, signal) == column(console, signal)


def test_three_decimals_round_the_lr_away_and_that_is_said(tmp_path: Path) -> None:
    """As verl printed until 2025: 1e-6 is 0.000. Some wrote the lr in units of 1e-4."""
    found = read(write(tmp_path / "run.log", [line(verl(step), step, "{:.3f}") for step in range(1, 21)]))
    assert "lr" not in found.past.columns
    assert "rounded away" in found.past.unused["actor/lr"]
    values = {"critic/score/mean": 0.5, "actor/lr(1e-4)": 0.02}
    found = read(write(tmp_path / "old.log", [line(values, step, "{:.3f}") for step in range(5)]))
    assert column(found, "lr")[1:] == pytest.approx([2e-6] * 4)


def test_without_a_kl_in_the_reward_there_is_no_kl_reward(tmp_path: Path) -> None:
    values = {"critic/score/mean": 0.3, "critic/rewards/mean": 0.3}
    found = read(write(tmp_path / "run.log", [line(values, step) for step in range(5)]))
    assert taken(found) == {"task_reward": "critic/score/mean"}
    assert "no KL in its reward" in found.past.unused["critic/rewards/mean - critic/score/mean"]


def test_what_cannot_serve_is_named_with_the_reason(tmp_path: Path) -> None:
    found = read(
        write(tmp_path / "run.log", [line({**verl(step), "my/kl": 1.0, "eval_kl": 1.0}, step) for step in range(1, 5)])
    )
    assert "value model" in found.past.unused["critic/lr"]
    assert "--map 'my/kl=SIGNAL'" in found.past.unused["my/kl"]
    assert "critic/rewards/mean" not in found.past.unused  # it is half of the KL reward
    assert "response_length/mean" not in found.past.unused
    assert "eval_kl" not in found.past.unused  # of an evaluation: none of the steps'


# --- TRL: units ---


def test_a_sum_over_a_sequence_is_no_kl_per_token(tmp_path: Path) -> None:
    logs = {"objective/kl": 30.0, "objective/scores": 1.0, "objective/non_score_reward": -1.5, "lr": 1e-6}
    found = read(jsonl(tmp_path / "a.jsonl", [{"step": step, **logs} for step in range(5)]))
    assert set(found.past.columns) == {"task_reward", "kl_reward", "lr"}
    assert "sum over a sequence" in found.past.unused["objective/kl"]
    lengths = {"tokens/responses_len_mean": 60.0}
    found = read(jsonl(tmp_path / "b.jsonl", [{"step": step, **logs, **lengths} for step in range(5)]))
    assert column(found, "reference_kl") == [0.5] * 5
    assert "objective/kl" not in found.past.unused


def test_the_kl_of_grpo_is_not_the_size_of_a_step(tmp_path: Path) -> None:
    logs = {"kl": 0.02, "reward": 0.5, "rewards/format/mean": 0.1, "grad_norm": 1.0, "learning_rate": 1e-6}
    found = read(jsonl(tmp_path / "log.jsonl", [{"step": step, **logs} for step in range(5)]))
    assert taken(found)["task_reward"] == "reward"
    assert "kl" not in found.past.columns
    assert "not the size of a policy step" in found.past.unused["kl"]
    assert "part of the reward" in found.past.unused["rewards/format/mean"]


def test_approxkl_is_a_kl_read_in_the_loop(tmp_path: Path) -> None:
    found = read(jsonl(tmp_path / "log.jsonl", [{"step": step, "policy/approxkl_avg": 0.002} for step in range(5)]))
    assert (taken(found)["kl"], found.past.kl_sources[0]) == ("policy/approxkl_avg", "in_loop")


def test_a_kl_after_the_update_goes_before_one_in_the_loop(tmp_path: Path) -> None:
    logs = {"policy/approxkl_avg": 0.002, "policy/kl": 0.02}
    found = read(jsonl(tmp_path / "log.jsonl", [{"step": step, **logs} for step in range(5)]))
    assert (column(found, "kl")[0], found.past.kl_sources[0]) == (0.02, "post_update")
    assert found.past.unused["policy/approxkl_avg"] == "policy/kl is taken"


def test_the_entropy_loss_of_stable_baselines_is_minus_the_entropy(tmp_path: Path) -> None:
    logs = {"train/entropy_loss": -1.4, "train/approx_kl": 0.01, "rollout/ep_rew_mean": 20.0}
    found = read(jsonl(tmp_path / "log.jsonl", [{"step": 2048 * step, **logs} for step in range(1, 5)]))
    assert column(found, "entropy") == [1.4] * 4
    assert taken(found)["kl"] == "train/approx_kl"
    assert found.past.kl_sources[0] == "post_update"  # from four epochs on that is about what it reads
    assert found.past.every == 2048
    (reward,) = (one.what for one in found.past.taken if one.signal == "task_reward")
    assert "rolling mean" in reward


@pytest.mark.parametrize("mapping", [{}, {"mine": "kl:in_loop"}])
def test_the_table_names_known_signals_and_no_key_twice(mapping: dict[str, str]) -> None:
    table = keys.table(mapping)
    assert {key.signal for key in table.values()} <= {*NAMES, "lr", keys.FACTOR}
    assert len({key.name for key in keys.KEYS}) == len(keys.KEYS)
    assert not any(unfit(name) is None for name, _ in UNFIT if name.isidentifier())


# --- W&B ---


def test_an_offline_run_of_wandb(tmp_path: Path) -> None:
    (tmp_path / "offline-run-20261122_173638-maimmbn4").mkdir()
    file = tmp_path / "offline-run-20261122_173638-maimmbn4" / "run-maimmbn4.wandb"
    file.write_bytes(OFFLINE.read_bytes())
    for path in (OFFLINE, file, file.parent, tmp_path):
        found = read(path)
        assert found.past.steps.tolist() == list(range(1, 71))
        assert column(found, "lr")[1:] == pytest.approx([min(step / 20, 1.0) * 1e-6 for step in range(1, 70)])
        assert column(found, "grad_norm")[-1] is not None
        assert math.isnan(column(found, "grad_norm")[-1] or 0.0)
        assert math.isfinite(column(found, "grad_norm")[-2] or math.nan)
        assert taken(found)["kl_reward"] == "critic/rewards/mean - critic/score/mean"
        assert not found.notes


def test_of_several_runs_of_wandb_each_is_named_as_it_is_found(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"offline-run-{name}").mkdir()
        (tmp_path / f"offline-run-{name}" / f"run-{name}.wandb").write_bytes(b"")
    with pytest.raises(ValueError, match=r"several runs \(offline-run-a/run-a.wandb, offline-run-b/run-b.wandb\)"):
        read(tmp_path)


def test_a_wandb_file_that_breaks_off_and_one_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "run-a.wandb").write_bytes(OFFLINE.read_bytes()[:40_100])
    found = read(tmp_path / "run-a.wandb")
    assert found.past.steps.tolist() == list(range(1, len(found.past.steps) + 1))
    assert 40 < len(found.past.steps) < 70
    assert "breaks off" in found.notes[0]
    (tmp_path / "run-b.wandb").write_bytes(b"not at all")
    with pytest.raises(ValueError, match=r"run-b\.wandb does not begin as a W&B run file"):
        read(tmp_path / "run-b.wandb")
    with pytest.raises(ValueError, match="several runs"):
        read(tmp_path)


def test_a_record_never_begins_in_the_last_bytes_of_a_block(tmp_path: Path) -> None:
    """A record of another kind fills the block of 32 KiB but for 3 bytes, too few for a piece: they are padding."""
    payload = 32768 - 7 - 7 - 3
    other = b"\x22" + bytes([0x80 | (payload - 4) & 127, 0x80 | (payload - 4) >> 7 & 127, (payload - 4) >> 14])
    piece = b"\0\0\0\0" + payload.to_bytes(2, "little") + b"\1" + other + b"x" * (payload - 4)
    real = OFFLINE.read_bytes()
    (tmp_path / "run-a.wandb").write_bytes(real[:7] + piece + b"\0\0\0" + real[7:20_000])
    assert len(read(tmp_path / "run-a.wandb").past.steps) == len(read_first(tmp_path, real[:20_000])) > 20


def read_first(folder: Path, content: bytes) -> list[int]:
    (folder / "run-b.wandb").write_bytes(content)
    steps: list[int] = read(folder / "run-b.wandb").past.steps.tolist()
    return steps


def table(path: Path, names: list[str], cells: list[list[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *cells])
    return path


def test_the_export_of_a_wandb_chart(tmp_path: Path) -> None:
    name = "calm-sky-7 - actor/ppo_kl"
    names = ["Step", name, f"{name}__MIN", f"{name}__MAX"]
    found = read(table(tmp_path / "chart.csv", names, [[step, 0.25, 0.1, 0.5] for step in range(5)]))
    assert column(found, "kl") == [0.25] * 5
    assert taken(found) == {"kl": name}


def test_of_two_runs_in_one_chart_the_first_is_taken_and_that_is_said(tmp_path: Path) -> None:
    names = ["Step", "a - critic/score/mean", "b - critic/score/mean"]
    found = read(table(tmp_path / "chart.csv", names, [[step, 0.25, 0.5] for step in range(5)]))
    assert column(found, "task_reward") == [0.25] * 5
    assert found.past.unused["b - critic/score/mean"] == "a - critic/score/mean is taken"


def test_wandbs_own_step_counts_calls_and_not_steps(tmp_path: Path) -> None:
    trained = [{"_step": 2 * step, "train/global_step": 10 * step, "train/loss": 0.5} for step in range(1, 6)]
    mixed = [row for one in trained for row in (one, {"_step": one["_step"] + 1, "train/loss": 9.0})]
    found = read(jsonl(tmp_path / "history.jsonl", mixed))
    assert found.past.steps.tolist() == [10, 20, 30, 40, 50]
    assert column(found, "loss") == [0.5] * 5
    assert found.notes == [
        "5 rows, the first at line 2, with steps counted by _step, not by train/global_step: left out"
    ]


# --- Anyone's own ---


def test_a_key_of_the_users_own(tmp_path: Path) -> None:
    path = table(tmp_path / "log.csv", ["step", "d", "entropy", "R"], [[step, 0.02, 1.0, 0.5] for step in range(5)])
    assert set(read(path).past.columns) == {"entropy"}
    found = read(path, {"d": "kl:probe", "R": "task_reward", "entropy": "lr"})
    assert (taken(found), found.past.kl_sources[0]) == ({"kl": "d", "task_reward": "R", "lr": "entropy"}, "probe")
    with pytest.raises(TypeError, match="Did you mean task_reward"):
        read(path, {"R": "rewards"})
    with pytest.raises(ValueError, match="kl_source='exact' is unknown"):
        read(path, {"d": "kl:exact"})


def test_a_decision_log_of_our_own(tmp_path: Path) -> None:
    regulator = Regulator(Config(10))
    with DecisionLog(tmp_path / "run.jsonl", regulator.config) as log:
        for step in range(20):
            factor = regulator.decision.factor
            regulator.observe("in_loop", kl=0.001 + step, task_reward=0.5)
            regulator.decide()
            log.write(regulator, lr=0.1 * factor)
    found = read(tmp_path / "run.jsonl")
    assert column(found, "kl") == [0.001 + step for step in range(20)]
    assert found.past.kl_sources[0] == "in_loop"
    assert found.notes == ["with the settings in the log, 20 of its 20 decisions come out the same"]


def test_of_a_decision_log_late_kls_are_left_out(tmp_path: Path) -> None:
    """A row has the lr of its own step."""
    regulator = Regulator(Config(10))
    with DecisionLog(tmp_path / "run.jsonl", regulator.config) as log:
        for step in range(20):
            factor = regulator.decision.factor
            regulator.observe(kl=0.001 + step, task_reward=0.5, of_step=max(step - 2, 0) if step < 10 else None)
            regulator.decide()
            log.write(regulator, lr=0.1 * factor)
    found = read(tmp_path / "run.jsonl")
    assert column(found, "kl")[10:] == [0.001 + step for step in range(10, 20)]
    assert found.past.columns["kl"].given.tolist() == [True, *9 * [False], *10 * [True]]
    assert "7 KLs of earlier steps, which came late: left out" in found.notes


# --- Damage ---


@pytest.mark.parametrize(
    ("text", "value"),
    [("NaN", math.nan), ("nan", math.nan), ("Infinity", math.inf), ("-inf", -math.inf), ("1e-3", 1e-3)],
)
def test_numbers_as_text(tmp_path: Path, text: str, value: float) -> None:
    in_json = read(jsonl(tmp_path / "a.jsonl", [{"step": 0, "loss": text}]))
    in_table = read(write(tmp_path / "a.csv", ["step,loss", f"0,{text}"]))
    in_console = read(write(tmp_path / "a.log", [f"step:0 - loss:{text}"]))
    for found in (in_json, in_table, in_console):
        assert column(found, "loss") == pytest.approx([value], nan_ok=True)


def test_nothing_is_not_nan(tmp_path: Path) -> None:
    contents = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": None, "entropy": 1.0}, {"step": 2, "loss": float("nan")}]
    loss = column(read(jsonl(tmp_path / "a.jsonl", contents)), "loss")
    assert (loss[0], loss[1]) == (1.0, None)
    assert math.isnan(loss[2] or 0.0)
    assert column(read(write(tmp_path / "a.csv", ["step,loss,entropy", "0,1.0,1", "1,,1"])), "loss") == [1.0, None]


def test_steps_twice_and_out_of_order(tmp_path: Path) -> None:
    contents = [{"step": step, "loss": value} for step, value in [(1, 0.1), (2, 0.2), (2, 0.3), (5, 0.5), (4, 0.4)]]
    found = read(jsonl(tmp_path / "a.jsonl", contents))
    assert found.past.steps.tolist() == [1, 2, 4, 5]
    assert column(found, "loss") == [0.1, 0.3, 0.4, 0.5]
    assert [note.split(":")[0] for note in found.notes] == ["line 3", "line 5"]


def test_rows_of_one_step_are_one_step(tmp_path: Path) -> None:
    found = read(jsonl(tmp_path / "a.jsonl", [{"step": 1, "loss": 0.1}, {"step": 1, "reward": 0.5}]))
    assert (column(found, "loss"), column(found, "task_reward")) == ([0.1], [0.5])
    assert not found.notes


CUT = {
    "a.jsonl": (['{"step": 1, "loss": 0.5}', '{"step": 2, "loss": 0.5}', '{"step": 3, "lo'], "line 3: the file breaks"),
    "a.csv": (["step,loss,entropy", "1,0.5,1.0", "2,0.5,1.0", "3,0.5"], "line 4: the file breaks"),
    "a.log": (["step:1 - loss:0.5", "step:2 - loss:0.5", "step:3 - loss:0."], "line 3: the file breaks off here"),
}


@pytest.mark.parametrize("name", CUT)
def test_a_last_line_that_is_cut_is_said_and_the_rest_is_used(tmp_path: Path, name: str) -> None:
    lines, words = CUT[name]
    (tmp_path / name).write_text("\n".join(lines))
    found = read(tmp_path / name)
    assert found.past.steps.tolist() == [1, 2]
    assert column(found, "loss") == [0.5, 0.5]
    assert found.notes[0].startswith(words)


def test_damaged_lines_are_counted_and_the_rest_is_used(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 0.5}) for step in range(20)]
    for at in (3, 5, 7, 9, 11):
        lines[at] = "garbage"
    lines[11] = '{"step": 11, "loss": ' + "9" * 5000 + "}"  # more digits than Python reads
    lines[15] = json.dumps({"step": 1.5, "loss": 0.5})
    lines[16] = json.dumps({"step": 16, "loss": "high"})
    found = read(write(tmp_path / "a.jsonl", lines))
    assert len(found.past.steps) == 13
    assert found.notes == [
        "line 4, line 6, line 8 and 2 more: no whole JSON object, left out",
        "line 16: step is no whole number, left out: '1.5'",
        "line 17: loss is no number, left out: 'high'",
    ]


def test_the_trainer_log_of_llama_factory(tmp_path: Path) -> None:
    lines = [{"current_steps": 10 * i, "total_steps": 50, "loss": 0.5, "lr": 1e-6 * i} for i in range(1, 6)]
    found = read(jsonl(tmp_path / "trainer_log.jsonl", lines))
    assert found.past.steps.tolist() == [10, 20, 30, 40, 50]
    assert not found.notes


def test_without_steps_lines_are_counted(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.csv", ["loss,entropy", "0.5,1", "0.25,1"]))
    assert column(found, "loss") == [0.5, 0.25]
    assert "lines are counted" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.log", "", "is empty"),
        ("a.txt", "Dear diary,\ntoday I trained nothing.\n", "no format that is known"),
        ("a.csv", "step,weather\n1,fair\n", r"none of its keys is a known signal: weather\. Say which is what"),
        ("a.csv", "step,loss\n", "holds no step"),
        ("a.json", '{"log_history": []}', "holds no step"),
        ("a.json", '{"log_history": [{"step": 1}]}', "holds no step"),
        ("a.json", '{\n "name": "x"\n}', "holds no step"),
        ("a.jsonl", '{"step": 1, "lr": 0.1}\n', "none of its keys is a known signal: lr"),
        ("a.bin", "\0\1\2" * 100, "no format that is known"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        read(tmp_path / name)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read(tmp_path / "gone")
    with pytest.raises(ValueError, match="holds no event files"):
        read(tmp_path)


# --- Size ---


def big(path: Path, name: str) -> Path:
    """20 to 30 MB: a thousand steps with a lot between them, and a line of 20 MB that never ends."""
    with path.open("w") as file:
        for step in range(1000):
            values = {**verl(step), **{f"timing/{i}": 0.125 for i in range(150)}}
            file.write((line(values, step) if name == "log" else json.dumps({"step": step, "data": values})) + "\n")
            file.write(f"{'chatter ' * 500}\n" if name == "log" else "")
        if name == "log":
            file.write("x" * 20_000_000 + "\n")
            file.write(line(verl(1000), 1000) + "\n")
    return path


@pytest.mark.parametrize(("name", "most"), [("log", 40e6), ("jsonl", 4e6)])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str, most: float) -> None:
    """The console log holds one line of 20 MB, of which 16 are read at once."""
    path = big(tmp_path / f"run.{name}", name)
    tracemalloc.start()
    found = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.past.steps) >= 1000
    assert peak < most
    if name == "log":
        assert found.past.steps[-1] == 1000
        assert found.notes == ["line 2001: longer than 16 MB, left out"]


def test_a_trainer_state_is_read_in_pieces(tmp_path: Path) -> None:
    history = [{"step": step, "loss": 0.5, "note": "x" * 200} for step in range(50_000)]
    text = json.dumps({"best": "[{", "log_history": history}, indent=1)
    (tmp_path / "trainer_state.json").write_text(text)
    del history
    tracemalloc.start()
    found = read(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.past.steps.tolist() == list(range(50_000))
    assert peak < len(text) / 3
    assert np.all(found.past.columns["loss"].values == 0.5)


def test_an_entry_that_never_ends_is_tried_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 MB in pieces of 64 kB are 300; each try reads what is there from its beginning."""
    tries = []

    class Decoder(json.JSONDecoder):
        def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
            tries.append(idx)
            return super().raw_decode(s, idx)

    (tmp_path / "a.json").write_text('[{"step": 1, "reward": 0.5}, {"x": [' + "1.5," * 5_000_000)
    monkeypatch.setattr(json, "JSONDecoder", Decoder)
    found = read(tmp_path / "a.json")
    assert found.past.steps.tolist() == [1]
    assert found.notes == ["line 1: no whole JSON from here on; what comes before is used"]
    assert len(tries) < 20
