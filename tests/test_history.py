"""The decision log: what is written is what was decided, readable at every moment, whatever becomes of run and disk."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_warmup import Config, Regulator
from adaptive_warmup.history import DecisionLog, Run, follow, read, reading, replay
from adaptive_warmup.readers import read as read_past
from tests.plant import Plant

ROOT = Path(__file__).parents[1]


def steps(log: DecisionLog, regulator: Regulator, plant: Plant, count: int) -> list[float]:
    """So many steps; the factors decided for the next ones."""
    following = []
    for _ in range(count):
        step, factor = regulator.state.step, regulator.decision.factor
        regulator.observe(kl=plant.kl(step, factor), task_reward=math.sin(step), grad_norm=1.0, loss=0.1)
        following.append(regulator.decide().factor)
        log.write(regulator, lr=1e-3 * factor, score=0.5)
    return following


def record(path: Path, count: int, config: Config, seed: int = 0) -> list[float]:
    with DecisionLog(path, config, arm="test") as log:
        return steps(log, Regulator(config), Plant(noise=0.8, missing=0.2, seed=seed), count)


def killed_and_resumed(path: Path, saved_at: int, killed_at: int, until: int, **log: Any) -> list[float]:
    """The decisions that count of a run that was killed and went on from its checkpoint, with other noise."""
    config, regulator = Config(30), Regulator(Config(30))
    with DecisionLog(path, config, **log) as first:
        kept = steps(first, regulator, Plant(noise=0.8), saved_at)
        saved = json.loads(json.dumps(regulator.state_dict()))
        steps(first, regulator, Plant(noise=0.8, seed=1), killed_at - saved_at)
    again = Regulator(config)
    with DecisionLog(path, config, **log) as second:
        again.load_state_dict(saved)
        return kept + steps(second, again, Plant(noise=0.8, seed=2), until - saved_at)


def replays(run: Run) -> bool:
    """Whether the controller decides the same again, to the last bit and word."""
    decided = [(step["next"], step["phase"], step["reasons"]) for step in run.steps]
    return [(d.factor, d.phase, list(d.reasons)) for d in replay(run)] == decided


# --- What is written ---


@given(st.integers(0, 1000), st.sampled_from(["feedback", "linear"]))
def test_replaying_a_log_gives_the_same_decisions_bit_for_bit(tmp_path_factory, seed: int, law: str) -> None:
    path = tmp_path_factory.mktemp("log") / "run.jsonl"
    factors = record(path, 60, Config(30, law=law), seed)
    run = read(path)
    assert [step["next"] for step in run.steps] == factors
    assert replays(run)


def test_what_decisions_hang_on_is_kept_to_the_last_bit_and_nothing_is_rounded_out_of_range(tmp_path: Path) -> None:
    signals = {"kl": 1 / 300, "task_reward": 2 / 3, "kl_reward": -1 / 7, "grad_norm": 10 / 7}
    regulator = Regulator(Config(10))
    with DecisionLog(tmp_path / "run.jsonl", regulator.config) as log:
        for loss in (1 / 3, 9.99999e99):  # the latter in four digits would be 1e100, which counts as not finite
            regulator.observe(loss=loss, **signals)
            regulator.decide(1 / 3)
            log.write(regulator, lr=1e-3)
    run = read(tmp_path / "run.jsonl")
    assert [step["signals"] for step in run.steps] == [
        {**signals, "lr_scale": 1 / 3, "loss": loss} for loss in (0.3333, 9.99999e99)
    ]
    assert [decision.alarms for decision in replay(run)] == [(), ()]


def test_small_and_named(tmp_path: Path) -> None:
    record(tmp_path / "run.jsonl", 300, Config(30))
    run = read(tmp_path / "run.jsonl")
    assert (tmp_path / "run.jsonl").stat().st_size / 300 <= 400
    assert run.about == {"arm": "test"}
    assert run.metric("score") == [0.5] * 300
    assert math.isnan(run.metric("unknown")[0])
    assert run.signal("grad_norm") == [1.0] * 300
    assert run.problem is None


def test_the_first_line_says_what_wrote_it_and_does_not_import_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from adaptive_warmup import Config; from adaptive_warmup.history import DecisionLog;"
        f"DecisionLog({str(tmp_path / 'a.jsonl')!r}, Config(5)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
    head = json.loads((tmp_path / "a.jsonl").read_text())
    assert head["versions"] == {"adaptive_warmup": "0.1.0", "python": platform.python_version()}
    assert (head["host"], head["step"], head["config"]["warmup_steps"]) == (platform.node(), 0, 5)
    assert "state" not in head
    import torch

    DecisionLog(tmp_path / "b.jsonl", Config(5)).close()
    assert json.loads((tmp_path / "b.jsonl").read_text())["versions"]["torch"] == torch.__version__


def test_an_alarm_is_written_out_once_and_read_in_every_step(tmp_path: Path) -> None:
    regulator = Regulator(Config(10))
    with DecisionLog(tmp_path / "run.jsonl") as log:
        for step in range(40):
            regulator.observe(task_reward=0.8 if step < 20 or step == 30 else 0.1)
            regulator.decide()
            log.write(regulator, lr=0.1)
    text = (tmp_path / "run.jsonl").read_text()
    read_alarms = [step.get("alarms") for step in read(tmp_path / "run.jsonl").steps]
    assert sum(alarms is not None for alarms in read_alarms) > 5
    assert text.count("more than its noise explains") - text.count("backing off") < 5
    assert all(alarms[0][0] == "score_drop" and "task reward" in alarms[0][1] for alarms in read_alarms if alarms)


def test_a_number_that_breaks_for_another_reason_is_told_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    regulator, path = Regulator(Config(10)), tmp_path / "run.jsonl"
    with DecisionLog(path) as log, caplog.at_level(logging.WARNING, "adaptive_warmup"):
        for broken in ({"kl": math.nan}, {"kl": math.nan}, {"loss": math.inf}):
            regulator.observe(**broken)
            regulator.decide()
            log.write(regulator, lr=0.1)
    told = [step["alarms"][0][1].partition(":")[0] for step in read(path).steps]
    assert told == ["kl is nan", "kl is nan", "loss is inf"]
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == ["kl is nan", "loss is inf"]


def test_further_numbers_on_the_last_step(tmp_path: Path) -> None:
    with DecisionLog(tmp_path / "run.jsonl") as log:
        log.add(nothing=1.0)  # no step to add it to
        steps(log, Regulator(Config(5)), Plant(), 3)
        log.add(evaluation=0.75)
    run = read(tmp_path / "run.jsonl")
    assert run.steps[2]["metrics"] == {"score": 0.5, "evaluation": 0.75}
    assert len(run.steps) == 3
    assert replays(run)
    assert read_past(tmp_path / "run.jsonl").past.steps.tolist() == [0, 1, 2]


RECORDED = sorted((ROOT / "benchmarks" / "results" / "demo").glob("*/*.jsonl"))


@pytest.mark.parametrize("path", RECORDED, ids=[f"{path.parent.name}/{path.stem}" for path in RECORDED])
def test_the_recorded_runs_replay_bit_for_bit_and_are_small(tmp_path: Path, path: Path) -> None:
    """PPO runs of 60 steps, some of them collapsed. Written anew, a step takes 400 bytes at most."""
    run = read(path)
    assert replays(run)
    regulator = Regulator(run.config)
    with DecisionLog(tmp_path / "again.jsonl", run.config, **run.about) as log:
        for step in run.steps:
            signals = dict(step["signals"])
            regulator.observe(signals.pop("kl_source", None), **signals)
            regulator.decide()
            log.write(regulator, lr=step["lr"], **step.get("metrics", {}))
    again = read(tmp_path / "again.jsonl")
    assert [step["next"] for step in again.steps] == [step["next"] for step in run.steps]
    assert [step.get("ceiling") for step in again.steps] == pytest.approx([step.get("ceiling") for step in run.steps])
    assert replays(again)
    _, *lines = (tmp_path / "again.jsonl").read_bytes().splitlines(keepends=True)
    assert sum(map(len, lines)) / len(run.steps) <= 400


# --- Resumption ---


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20))
def test_a_resumed_run_goes_on_in_its_log_and_the_later_steps_count(
    tmp_path_factory: pytest.TempPathFactory, saved_at: int, lost: int, more: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "run.jsonl"
    factors = killed_and_resumed(path, saved_at, saved_at + lost, saved_at + more, arm="x")
    run = read(path)
    assert [step["step"] for step in run.steps] == list(range(saved_at + more))
    assert [step["next"] for step in run.steps] == factors
    assert replays(run)
    assert len(path.read_text().splitlines()) == saved_at + lost + more + 2  # nothing was taken out
    assert (run.problem is not None) == (lost > 0)
    if lost:
        words = (
            f"the run goes on at step {saved_at}: steps {saved_at} to {saved_at + lost - 1} before it are superseded"
        )
        assert words in str(run.problem)
    found = read_past(path)
    assert found.past.steps.tolist() == list(range(saved_at + more))
    assert found.past.columns["lr"].values.tolist() == [step["lr"] for step in run.steps]
    assert any(f"the run goes on at step {saved_at}" in note for note in found.notes) == (lost > 0)
    every = saved_at + lost + more
    assert found.notes[-1] == f"with the settings in the log, {every} of its {every} decisions come out the same"


def test_resuming_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    killed_and_resumed(tmp_path / "run.jsonl", 10, 15, 20)
    (record,) = (one for one in caplog.records if "superseded" in one.message)
    assert "the run goes on at step 10; steps 10 to 14, logged before, are superseded" in record.message


def test_a_start_with_a_state_replays_without_what_came_before(tmp_path: Path) -> None:
    """The log of a resumed run in a file of its own."""
    regulator = Regulator(Config(30))
    steps(DecisionLog(tmp_path / "a.jsonl"), regulator, Plant(noise=0.8), 10)
    again = Regulator(Config(30))
    again.load_state_dict(regulator.state_dict())
    steps(DecisionLog(tmp_path / "b.jsonl", Config(30)), again, Plant(noise=0.8), 10)
    run = read(tmp_path / "b.jsonl")
    assert [step["step"] for step in run.steps] == list(range(10, 20))
    assert replays(run)
    regulator.restart(at=20)  # a checkpoint without a state: the nominal warmup from there
    steps(log := DecisionLog(tmp_path / "b.jsonl"), regulator, Plant(noise=0.8), 5)
    log.close()
    assert replays(read(tmp_path / "b.jsonl"))
    assert len(read(tmp_path / "b.jsonl").steps) == 15


def test_a_line_that_a_kill_cut_is_left_and_a_new_one_begun(tmp_path: Path) -> None:
    path, regulator = tmp_path / "run.jsonl", Regulator(Config(30))
    with DecisionLog(path) as log:
        steps(log, regulator, Plant(), 4)
        saved = regulator.state_dict()
        steps(log, regulator, Plant(), 1)
    path.write_bytes(path.read_bytes()[:-40])
    again = Regulator(Config(30))
    again.load_state_dict(saved)
    with DecisionLog(path) as log:
        steps(log, again, Plant(), 3)
    run = read(path)
    assert [step["step"] for step in run.steps] == list(range(7))
    assert run.problem == (
        f"{path}, line 6: not a whole JSON line of a decision log (was the run killed there?), left out"
    )
    assert replays(run)


@pytest.mark.parametrize("left", [1, 10, 100])
def test_where_a_kill_cut_the_first_line_the_log_begins_anew(tmp_path: Path, left: int) -> None:
    path = tmp_path / "run.jsonl"
    DecisionLog(path, Config(30)).close()
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match="the run has logged nothing"):
        read(path)
    with DecisionLog(path, Config(30)) as log:
        steps(log, Regulator(Config(30)), Plant(), 3)
    run = read(path)
    assert (len(run.steps), run.problem) == (3, None)
    assert len(path.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("config", "about", "words"),
    [
        (Config(40), {"arm": "x"}, "warmup_steps 30, here 40"),
        (Config(30), {"arm": "y"}, "arm 'x', here 'y'"),
        (Config(30), {"arm": "x", "lr": 0.1}, "lr None, here 0.1"),
    ],
)
def test_the_log_of_another_run_is_left_as_it_is(tmp_path: Path, config: Config, about: Any, words: str) -> None:
    path = tmp_path / "run.jsonl"
    with DecisionLog(path, Config(30), arm="x") as log:
        steps(log, Regulator(Config(30)), Plant(), 3)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"run\.jsonl is the log of another run \(.*{words}.*\): name another file"):
        DecisionLog(path, config, **about)
    assert path.read_bytes() == before


NO_LOG = ["step,kl\n1,2\n", json.dumps({"adaptive_warmup": 99}) + "\n", "\0" * 100, "mine", '{"adaptive": 1']


@pytest.mark.parametrize("text", NO_LOG)
def test_a_file_that_is_no_log_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(ValueError, match=r"mine\.txt, line 1: no decision log.*: it is left as it is, name another"):
        DecisionLog(tmp_path / "mine.txt", Config(5))
    assert (tmp_path / "mine.txt").read_text() == text


def test_what_cannot_be_a_log(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        DecisionLog(tmp_path, Config(5))
    with pytest.raises(ValueError, match="max_bytes=0 must be positive"):
        DecisionLog(tmp_path / "a.jsonl", max_bytes=0)
    with pytest.raises(TypeError, match="not JSON serializable"):
        DecisionLog(tmp_path / "a.jsonl", thing=object())
    for log in (True, 3, b"a.jsonl"):
        with pytest.raises(TypeError, match=re.escape(f"log={log!r}: give a path, such as 'run.jsonl'")):
            DecisionLog.of(log)


def test_a_process_that_moves_elsewhere_goes_on_in_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    regulator = Regulator(Config(5))
    with DecisionLog("run.jsonl", regulator.config) as log:
        for _ in range(3):
            regulator.decide()
            log.write(regulator, lr=0.1)
            monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(read(tmp_path / "run.jsonl").steps) == 3
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not caplog.messages


def test_a_tilde_is_the_home_as_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    DecisionLog("~/logs/run.jsonl", Config(5)).close()
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


KILLED = """
import sys
from adaptive_warmup import Config, Regulator
from adaptive_warmup.history import DecisionLog
regulator = Regulator(Config(30))
log = DecisionLog(sys.argv[1])
while True:
    regulator.observe(kl=0.01 * regulator.decision.factor)
    regulator.decide()
    log.write(regulator, lr=0.1)
    print(regulator.state.step, flush=True)
"""


def test_a_killed_run_has_logged_all_that_it_has_done(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert run.stdout is not None
    said = [next(run.stdout) for _ in range(50)]
    assert len(read(path).steps) >= 50  # while it runs
    run.send_signal(signal.SIGKILL)
    said += run.stdout.readlines()
    run.wait()
    logged = read(path)
    whole = [line for line in said if line.endswith("\n")]
    assert len(logged.steps) >= int(whole[-1]) >= 50
    assert replays(logged)


# --- Rotation ---


def test_a_log_that_has_grown_goes_on_in_another_file_and_is_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    (tmp_path / "run.jsonl.3").write_text("mine")
    factors = killed_and_resumed(path, 30, 40, 60, max_bytes=5000)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names[:4] == ["run.jsonl", "run.jsonl.2", "run.jsonl.3", "run.jsonl.4"]
    assert (tmp_path / "run.jsonl.3").read_text() == "mine"
    assert json.loads(path.read_text().splitlines()[-1]) == {"continued_in": "run.jsonl.2"}
    assert json.loads((tmp_path / "run.jsonl.4").read_text().splitlines()[0])["continues"] == "run.jsonl.2"
    assert all(4000 < (tmp_path / name).stat().st_size < 7000 for name in ("run.jsonl", "run.jsonl.2"))
    run = read(path)
    assert [step["next"] for step in run.steps] == factors
    assert replays(run)
    assert f"{names[-1]}, line" not in str(run.problem)
    assert "before it are superseded" in str(run.problem)
    assert [len(one.steps) for one in follow(path, lambda: False)] == [60]
    assert read_past(path).past.steps.tolist() == list(range(60))
    later = read(tmp_path / "run.jsonl.4")  # by itself
    assert replays(later)
    (tmp_path / "run.jsonl.4").rename(tmp_path / "elsewhere")
    assert "run.jsonl.4, which is not there; what comes before is used" in str(read(path).problem)


def test_by_default_there_is_one_file(tmp_path: Path) -> None:
    record(tmp_path / "run.jsonl", 500, Config(30))
    assert [file.name for file in tmp_path.iterdir()] == ["run.jsonl"]


# --- Reading what is damaged ---


def test_a_log_cut_short_is_read_up_to_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    record(path, 10, Config(30))
    path.write_text(path.read_text()[:-40])
    run = read(path)
    assert len(run.steps) == 9
    assert "line 11" in str(run.problem)


@pytest.mark.parametrize("text", ["", "step,kl\n1,2\n", json.dumps({"adaptive_warmup": 99}) + "\n", "[1]\n"])
def test_a_foreign_file_is_refused_by_name_and_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.log").write_text(text)
    with pytest.raises(ValueError, match=r"other\.log, line 1: no decision log"):
        read(tmp_path / "other.log")


DAMAGE: dict[str, tuple[str, str]] = {
    "garbage": ("garbage", "line 4: not a whole JSON line"),
    "foreign schema": ('{"step": 2, "loss": 0.5}', "line 4: not a whole JSON line"),
    "no number": ('{"step": 2, "lr": "high", "signals": {}, "next": 1, "phase": "done", "reasons": ["x"]}', "line 4"),
    "no signals": ('{"step": 2, "lr": 1, "signals": [1], "next": 1, "phase": "done", "reasons": ["x"]}', "line 4"),
    "long number": ('{"step": 2, "lr": 1' + 5000 * "0" + "}", "line 4: not a whole JSON line"),
    "large next": (
        '{"step": 2, "lr": 1, "signals": {}, "next": 1' + 400 * "0" + ', "phase": "done", "reasons": ["x"]}',
        "line 4: not a whole JSON line",
    ),
    "endless": (
        '{"step": 2, "lr": 1, "signals": {}, "next": 1, "phase": "warmup", "reasons": ["x"], "ends": Infinity}',
        "line 4: not a whole JSON line",
    ),
    "no phase": (
        '{"step": 2, "lr": 1, "signals": {}, "next": 1, "phase": "resting", "reasons": ["x"]}',
        "line 4: not a whole JSON line",
    ),
    "no factor": (
        '{"step": 2, "lr": 1, "signals": {}, "next": 1e308, "phase": "warmup", "reasons": ["x"]}',
        "line 4: not a whole JSON line",
    ),
    "early start": (
        '{"adaptive_warmup": 1, "step": -2, "config": {"warmup_steps": 30}, "about": {"arm": "test"}}',
        "a start that cannot be read",
    ),
    "bad start": ('{"adaptive_warmup": 1, "config": {"law": "wild"}, "about": {}}', "a start that cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_line_is_named_and_the_rest_is_used(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run.jsonl"
    record(path, 10, Config(30))
    lines = path.read_text().splitlines()
    lines[3], words = DAMAGE[kind]
    path.write_text("\n".join(lines) + "\n")
    run = read(path)
    assert [step["step"] for step in run.steps] == [0, 1, *range(3, 10)]
    assert words in str(run.problem)
    assert len(read_past(path).past.steps) == 9
    DecisionLog(path, Config(30), arm="test")  # goes on in it


def test_steps_twice_out_of_order_and_nan_as_text(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    record(path, 10, Config(30))
    head, *lines = path.read_text().splitlines()
    lines[4] = lines[4].replace('"grad_norm":1.0', '"grad_norm":"NaN"')
    lines[5] = lines[5].replace('"grad_norm":1.0', '"grad_norm":2.0,"mood":3')
    path.write_text("\n".join([head, *lines[:3], lines[4], lines[3], *lines[4:], lines[9]]) + "\n")
    run = read(path)
    assert [step["step"] for step in run.steps] == list(range(10))
    assert math.isnan(run.steps[4]["signals"]["grad_norm"])
    assert run.steps[5]["signals"]["grad_norm"] == 2.0
    assert str(run.problem).splitlines() == [
        f"{path}, line 6: the steps go back: they are put in order",
        f"{path}, line 7, line 13: the same step again: the later counts",
        f"{path}, line 8: signal mood is '3', left out",
    ]


def test_another_run_in_the_same_file_is_left_out(tmp_path: Path) -> None:
    record(tmp_path / "a.jsonl", 5, Config(30))
    record(tmp_path / "b.jsonl", 7, Config(20))
    both = tmp_path / "both.jsonl"
    both.write_text("".join((tmp_path / name).read_text() for name in ("a.jsonl", "b.jsonl", "a.jsonl")))
    run = read(both)
    assert (len(run.steps), run.config.warmup_steps) == (5, 30)
    assert "line 7: another run, of other settings, begins here: it is left out" in str(run.problem)
    assert len(read_past(both).past.steps) == 5


# --- Disks ---


def test_a_full_disk_costs_the_log_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """/dev/full is a disk that is always full."""
    with caplog.at_level(logging.WARNING):
        log = DecisionLog("/dev/full", Config(10))
        steps(log, Regulator(Config(10)), Plant(), 5)
        log.add(evaluation=1.0)
        log.close()
    assert len(caplog.records) == 1
    assert "No space left on device" in caplog.text
    assert "training goes on" in caplog.text


READ_ONLY = """
import logging, os, sys
from adaptive_warmup import Config, Regulator
from adaptive_warmup.history import DecisionLog
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)  # root may write anywhere
logging.basicConfig(level=logging.WARNING)
for path in sys.argv[1:]:
    regulator = Regulator(Config(10))
    log = DecisionLog(path, Config(10))
    for _ in range(3):
        regulator.decide()
        log.write(regulator, lr=0.1)
    log.close()
print("trained to the end")
"""


def test_a_folder_that_is_read_only_costs_the_log_and_not_the_run(tmp_path: Path) -> None:
    folder = Path(f"/tmp/read-only-{os.getpid()}-{time.monotonic_ns()}")  # pytest's own may be closed to others
    folder.mkdir()
    record(folder / "old.jsonl", 3, Config(10))
    secret = folder / "old.jsonl"
    secret.chmod(0o000)
    folder.chmod(0o555)
    try:
        paths = [str(folder / "new.jsonl"), str(folder / "deep" / "new.jsonl"), str(secret)]
        ran = subprocess.run(
            [sys.executable, "-c", READ_ONLY, *paths], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert ran.stdout == "trained to the end\n"
        assert len(ran.stderr.splitlines()) == 3
        assert ran.stderr.count("training goes on") == 3
    finally:
        folder.chmod(0o755)
        secret.unlink()
        folder.rmdir()


def test_a_disk_that_has_room_again_is_logged_on_and_replays(tmp_path: Path) -> None:
    """The folder is away for a while: what is logged afterwards starts with the controller's state."""
    folder, regulator, plant = tmp_path / "disk", Regulator(Config(30)), Plant(noise=0.8)
    log = DecisionLog(folder / "run.jsonl", Config(30))
    steps(log, regulator, plant, 5)
    log.close()
    folder.rename(tmp_path / "away")
    folder.write_text("in the way")
    steps(log, regulator, plant, 5)
    folder.unlink()
    (tmp_path / "away").rename(folder)
    steps(log, regulator, plant, 5)
    log.close()
    run = read(folder / "run.jsonl")
    assert [step["step"] for step in run.steps] == [*range(5), *range(10, 15)]
    assert replays(run)


# --- Size ---


def long(path: Path, count: int) -> Path:
    """A log of so many steps: those of a real one, numbered anew."""
    record(path, 20, Config(30))
    head, *lines = path.read_text().splitlines()
    with path.open("w") as file:
        file.write(head + "\n")
        for number in range(count):
            line = lines[number % 20]
            file.write(f'{{"step":{number},{line[line.index(",") + 1 :]}\n')
    return path


def peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_a_log_of_any_length_is_read_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for 1,000 steps, four times the file takes no more memory, and the first and last steps are there."""
    monkeypatch.setattr(reading, "_MOST", 1000)
    short, tall = long(tmp_path / "short.jsonl", 1_500), long(tmp_path / "tall.jsonl", 6_000)
    assert peak(lambda: read(tall)) < 1.3 * peak(lambda: read(short))
    run = read(tall)
    numbers = [step["step"] for step in run.steps]
    assert numbers == [*range(0, 6_000, 8), 5_999]
    assert str(run.problem).endswith("more than 1,000 steps: one in 8 is kept, and the last")
    assert [len(one.steps) for one in follow(tall, lambda: False)] == [751]
    assert len(read_past(tall).past.steps) == 6_000  # what replay reads: 16 bytes a number


def test_replaying_a_log_keeps_its_numbers_and_not_its_text(tmp_path: Path) -> None:
    """The steps streamed through the reader of `replay`: the memory is that of the numbers, some 200 bytes a step."""
    short, tall = long(tmp_path / "short.jsonl", 1_500), long(tmp_path / "tall.jsonl", 6_000)
    assert tall.stat().st_size > 6_000 * 250
    grown = peak(lambda: read_past(tall)) - peak(lambda: read_past(short))
    assert grown < 4_500 * 300
