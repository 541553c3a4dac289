"""Logs as they lie about: resumed, piped, compressed, cut, filled up with NaN, exported by a spreadsheet."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from adaptive_warmup import Config, Regulator
from adaptive_warmup.history import DecisionLog
from adaptive_warmup.readers import decision_log, read
from adaptive_warmup.replay import replay, setup
from tests.test_readers import column, jsonl, taken, write


def row(step: int, reward: float = 0.5) -> dict[str, Any]:
    return {"step": step, "reward": reward, "lr": 1e-6}


# --- of our own ---


@pytest.mark.parametrize("source", ["post_update:4x8", "in_loop:4x2"])
def test_a_kl_whose_source_counts_its_updates(tmp_path: Path, source: str) -> None:
    """The run is held by its KL, under a schedule that falls, and its replay as well: at every step at its factor."""
    regulator, path, decided = Regulator(Config(10)), tmp_path / "run.jsonl", []
    with DecisionLog(path, regulator.config) as log:
        for step in range(40):
            scale = 1.0 - step / 50
            share = regulator.decision.factor * scale
            regulator.observe(source, kl=0.05 * share**2)
            decided.append(regulator.decide(lr_scale=scale).factor)
            log.write(regulator, lr=1e-5 * share)
    assert max(decided) < 0.9
    found = read(path)
    assert found.past.kl_sources[0] == source
    base, peak = decision_log.settings(path)
    given = setup(found.past, base, peak, None, None)
    moments = list(replay(found.past, given))
    assert [moment.decision.factor for moment in moments] == pytest.approx(decided, rel=1e-5)
    assert not any(moment.differs for moment in moments)
    assert given.rates.warmup_steps is None  # the slope of an lr that adapts is nobody's setting


def test_kls_of_several_sources_by_turns_are_one_signal(tmp_path: Path) -> None:
    """A step's KL counts as its own source has it: the replay decides as the run did, at every step."""
    regulator, path, decided = Regulator(Config(10)), tmp_path / "run.jsonl", []
    with DecisionLog(path, regulator.config) as log:
        for step in range(40):
            factor = regulator.decision.factor
            source, scale = ("post_update", 1.0) if step % 2 else ("in_loop", 0.1)
            regulator.observe(source, kl=0.05 * scale * factor**2)
            decided.append(regulator.decide().factor)
            log.write(regulator, lr=1e-5 * factor)
    found = read(path)
    assert found.past.kl_sources == ["in_loop", "post_update"] * 20
    assert [one.key for one in found.past.taken] == ["signals/kl:post_update or signals/kl:in_loop", "signals/lr"]
    assert not found.past.unused
    base, peak = decision_log.settings(path)
    moments = replay(found.past, setup(found.past, base, peak, None, None))
    assert [moment.decision.factor for moment in moments] == pytest.approx(decided, rel=1e-5)


# --- steps ---


def test_of_a_resumed_run_what_came_after_the_checkpoint_is_superseded(tmp_path: Path) -> None:
    first, second = [row(step, 0.01) for step in range(1, 101)], [row(step, 0.9) for step in range(51, 71)]
    found = read(jsonl(tmp_path / "a.jsonl", [*first, *second]))
    assert found.past.steps.tolist() == list(range(1, 71))
    assert column(found, "task_reward") == [0.01] * 50 + [0.9] * 20
    assert found.notes == [
        "line 101: the steps go back to some that were logged (resumed?): what was logged before of that step and of"
        " later ones is superseded"
    ]


def test_a_run_resumed_in_a_second_event_file_has_no_tail_of_the_first(tmp_path: Path) -> None:
    for begin, end, reward in ((1, 30, 0.1), (11, 20, 0.9)):
        with SummaryWriter(str(tmp_path), filename_suffix=f".{begin}") as writer:
            for step in range(begin, end + 1):
                writer.add_scalar("train/reward", reward, step)
                writer.add_scalar("train/grad_norm", 2 * reward, step)
    found = read(tmp_path)
    assert column(found, "task_reward") == pytest.approx([0.1] * 10 + [0.9] * 10)
    assert column(found, "grad_norm") == pytest.approx([0.2] * 10 + [1.8] * 10)


def test_an_evaluation_that_comes_late_takes_nothing_back(tmp_path: Path) -> None:
    """Its key goes forward, if behind the others'."""
    lines = [{"step": step, "loss": 0.5} for step in range(1, 9)]
    lines[6:6] = [{"step": 3, "reward": 0.25}]
    found = read(jsonl(tmp_path / "a.jsonl", lines))
    assert column(found, "loss") == [0.5] * 8
    assert column(found, "task_reward") == [None, None, 0.25, None, None, None, None, None]


def test_a_stray_row_with_a_surer_counter_does_not_stand_for_the_run(tmp_path: Path) -> None:
    lines = [row(step) for step in range(1, 101)] + [{"global_step": 100, "loss": 0.4}]
    found = read(jsonl(tmp_path / "a.jsonl", lines))
    assert len(found.past.steps) == 100
    assert found.notes == ["1 row, the first at line 101, with steps counted by global_step, not by step: left out"]


@pytest.mark.parametrize(("first", "ahead"), [(0.0, False), (1e-7, True)])
def test_an_lr_of_verl_that_begins_at_zero_is_the_steps_own(tmp_path: Path, first: float, ahead: bool) -> None:
    lines = [{"step": 1 + i, "actor/lr": first + 1e-7 * i, "actor/grad_norm": 1.0} for i in range(5)]
    found = read(jsonl(tmp_path / "a.jsonl", lines))
    assert column(found, "lr")[1] == pytest.approx(1e-7)
    assert column(found, "lr")[0] == (None if ahead else 0.0)


def test_what_is_odd_of_a_line_is_one_case_whatever_the_number_of_its_keys(tmp_path: Path) -> None:
    found = read(jsonl(tmp_path / "a.jsonl", [row(step // 2) for step in range(20)]))
    assert found.notes == [
        "line 2, line 4, line 6 and 7 more: the same step again: of one step's values the last counts"
    ]


def test_an_lr_that_is_none_is_not_taken(tmp_path: Path) -> None:
    found = read(
        jsonl(tmp_path / "a.jsonl", [row(step) | {"lr": -1e-6 if step else float("nan")} for step in range(9)])
    )
    assert taken(found) == {"task_reward": "reward"}
    assert found.past.unused["lr"] == "never above zero: no lr"


# --- what fills a table up ---


def test_nan_for_what_a_row_does_not_have(tmp_path: Path) -> None:
    """As W&B's `history().to_dict("records")` has evaluations: at the step of a row, with NaN under every other key."""
    nan = float("nan")
    lines = [{"step": 1, "reward": 0.5, "learning_rate": 1e-6, "grad_norm": 1.0, "eval/loss": nan}]
    lines += [{"step": 1, "reward": nan, "learning_rate": nan, "grad_norm": nan, "eval/loss": 0.3}]
    lines += [{"step": 2, "reward": nan, "learning_rate": 1e-6, "grad_norm": nan, "eval/loss": nan}]  # this one is real
    found = read(jsonl(tmp_path / "a.jsonl", lines))
    assert column(found, "grad_norm")[0] == 1.0
    assert str(column(found, "grad_norm")[1]) == "nan"
    assert column(found, "lr") == [1e-6, 1e-6]


def test_known_keys_behind_a_thousand_others(tmp_path: Path) -> None:
    many = {f"gradients/layer.{i}": 0.1 for i in range(1500)}
    found = read(jsonl(tmp_path / "a.jsonl", [{"step": 1, **many, "train/reward": 0.5, "train/grad_norm": 1.0}]))
    assert taken(found) == {"task_reward": "train/reward", "grad_norm": "train/grad_norm"}


def test_the_names_of_what_lies_deeper_are_joined_by_slashes(tmp_path: Path) -> None:
    lines = [{"step": step, "train": {"reward": 0.5, "my": {"kl": 0.01}}} for step in range(3)]
    found = read(jsonl(tmp_path / "a.jsonl", lines), {"train/my/kl": "kl"})
    assert taken(found) == {"kl": "train/my/kl", "task_reward": "train/reward"}


# --- the file ---


def test_a_run_that_reported_nothing(tmp_path: Path) -> None:
    regulator = Regulator(Config(10))
    with DecisionLog(tmp_path / "run.jsonl", regulator.config) as log:
        regulator.decide()
        log.write(regulator, lr=1e-5)
    with pytest.raises(ValueError, match="it holds no signal: nobody has reported one to that run"):
        read(tmp_path / "run.jsonl")


def test_a_pipe_is_no_file_to_read_twice(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="is a pipe, or a device: write it to a file first"):
        read(pipe)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b'{"step": 1, "loss": 0.5}\n'), r"a\.log is compressed: gunzip it first"),
        ("step,loss\n1,0.5\n".encode("utf-16"), r"a\.log is in UTF-16: convert it to UTF-8 first"),
    ],
    ids=["gzip", "utf-16"],  # what gzip writes has the time in it, and would be another id in each process
)
def test_what_is_no_text_of_ours_is_told_with_the_remedy(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.log").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read(tmp_path / "a.log")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"step,{200_000 * 'l'}\n1,0.5\n", "line 1 is no header of a table"),
        ("step,reward\n1,0.5\n", r"--map rewrd=\.\.\.: there is no such key. There are reward\."),
        ("step;reward;approx_kl\n1;0,5;0,01\n2;0,5;0,01\n", "with a point, not a comma.*reward, approx_kl"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.csv").write_text(text, newline="")
    with pytest.raises(ValueError, match=words):
        read(tmp_path / "a.csv", {"rewrd": "task_reward"} if "rewrd" in words else None)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " | "])
def test_delimiters_and_ends_of_lines(tmp_path: Path, delimiter: str, end: str) -> None:
    rows = [["step", "loss", "lr"], ["1", "0.5", "1e-06"], ["2", "0.25", "1e-06"]]
    (tmp_path / "log").write_text("".join(delimiter.join(row) + end for row in rows), newline="")
    found = read(tmp_path / "log")
    assert (column(found, "loss"), column(found, "lr"), found.notes) == ([0.5, 0.25], [1e-6, 1e-6], [])


def test_a_bar_in_a_name_divides_no_columns(tmp_path: Path) -> None:
    (tmp_path / "chart.csv").write_text('"step","a | b | c - loss"\n1,0.5\n')
    assert column(read(tmp_path / "chart.csv"), "loss") == [0.5]


@pytest.mark.parametrize("end", ["\n", "\r"])
def test_json_lines_of_an_old_mac_and_what_breaks_off_there(tmp_path: Path, end: str) -> None:
    lines = [json.dumps({"step": step, "loss": 0.5}) for step in range(3)]
    (tmp_path / "log.jsonl").write_text(end.join(lines)[:-2], newline="")
    found = read(tmp_path / "log.jsonl")
    assert (column(found, "loss"), found.notes) == ([0.5, 0.5], ["line 3: the file breaks off here"])


def test_the_last_number_of_a_table_may_be_cut(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("step,loss,lr\n1,0.5,1e-06\n2,0.5,1")  # of 1e-06
    found = read(tmp_path / "a.csv")
    assert column(found, "lr") == [1e-6, None]
    assert found.notes == ["line 3: the file breaks off here; the last value is left out"]


def test_a_quote_that_nobody_closes_is_told_with_what_it_swallowed(tmp_path: Path) -> None:
    lines = ["step, loss, note"] + [f"{step}, 0.5,fine" for step in range(1, 11)]
    lines[6] = '6, 0.5,"un'
    found = read(write(tmp_path / "a.csv", lines))
    assert found.past.steps.tolist() == [1, 2, 3, 4, 5]
    assert found.notes == ["line 7: no table from here to line 11 (unexpected end of data), left out"]


def test_many_values_that_are_no_numbers_are_one_note(tmp_path: Path) -> None:
    lines = ["step,loss,reward"] + [f'"{step},000",0.5,1' for step in range(1, 90)] + ["9,0.5,1"]
    found = read(write(tmp_path / "a.csv", lines))
    assert found.notes == ["line 2, line 3, line 4 and 86 more: step is no whole number, left out: '1,000'"]
