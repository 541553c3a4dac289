"""Outcomes, words, and what is drawn, from logs of simulated runs."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from adaptive_warmup import Config, Regulator, report
from adaptive_warmup.cli import main
from adaptive_warmup.history import DecisionLog, Run, read
from adaptive_warmup.report import panels, plain, reading
from tests.plant import Plant, steady

RISING = [min(0.3 + 0.01 * t, 0.9) for t in range(100)]
COLLAPSING = [*RISING[:60], *[0.05] * 20]


def logged(path: Path, scores: list[float], config: Config, bears: Any = 0.3, lr: float = 1e-2, **observed: Any) -> Run:
    """A log of a run at a constant schedule, or one at `lr_scale` where that is given."""
    lr_scale = observed.pop("lr_scale", 1.0)
    plant, regulator = Plant(bears=bears), Regulator(config)
    path.parent.mkdir(exist_ok=True)
    with DecisionLog(path, config, arm=path.stem, lr=lr) as log:
        for step, score in enumerate(scores):
            factor = regulator.decision.factor
            regulator.observe(kl=plant.kl(step, factor), task_reward=score, kl_reward=-0.1, **observed)
            regulator.decide(lr_scale)
            last = step == len(scores) - 1
            log.write(regulator, lr=lr * factor * lr_scale, **({"evaluation": score} if last else {}))
    return read(path)


def without(path: Path, *gone: range) -> Run:
    head, *steps = path.read_text().splitlines(keepends=True)
    path.write_text(head + "".join(line for step, line in enumerate(steps) if not any(step in some for some in gone)))
    return read(path)


def line(run: Run, key: str, role: str) -> panels.Line:
    panel = next(panel for panel in panels.story([run]).panels if panel.key == key)
    return next(line for line in panel.lines if line.role == role)


def test_outcome_in_numbers(tmp_path: Path) -> None:
    good = report.outcome(logged(tmp_path / "good.jsonl", RISING, steady(20)))
    bad = report.outcome(logged(tmp_path / "bad.jsonl", COLLAPSING, Config(20, law="linear")))
    assert (good.name, good.steps, good.collapsed, bad.collapsed) == ("good", 100, False, True)
    assert good.score == 0.9
    assert good.area == pytest.approx(sum(RISING) / 100)
    assert good.last_lr == pytest.approx(0.3e-2, rel=0.01)
    assert bad.highest_lr == pytest.approx(1e-2)


def test_outcome_in_words(tmp_path: Path) -> None:
    held = report.in_words(logged(tmp_path / "held.jsonl", RISING, steady(20)))
    warm = report.in_words(logged(tmp_path / "warm.jsonl", RISING, steady(20), bears=5.0))
    fixed = report.in_words(logged(tmp_path / "fixed.jsonl", RISING, Config(20, law="linear")))
    assert held == (
        "nominal 20 steps; not warm by step 99; held at 30 % of the peak from step 2, the ceiling at lr 3.0e-3"
    )
    assert warm == "nominal 20 steps; warm after 3"
    assert fixed == "fixed linear warmup of 20 steps; warm after 20"
    for steps in (1, 2):
        run = logged(tmp_path / f"{steps}.jsonl", RISING, Config(steps, law="linear"))
        assert report.in_words(run).endswith(f"; warm after {steps}")


def test_a_run_that_is_warm_and_later_held(tmp_path: Path) -> None:
    run = logged(tmp_path / "run.jsonl", [0.5] * 300, steady(290), bears=lambda t: 2.0 if t < 200 else 0.38, lr=1e-6)
    words = report.in_words(run)
    assert words == (
        "nominal 290 steps; warm after 3; held at 38 % of the peak from step 200, the ceiling at lr 3.8e-7"
    )


def test_under_a_schedule_a_factor_is_a_share_of_that(tmp_path: Path) -> None:
    path, regulator = tmp_path / "run.jsonl", Regulator(steady(20))
    with DecisionLog(path, regulator.config) as log:
        for step in range(60):
            lr = regulator.decision.factor * (scale := 1 - step / 100)
            regulator.observe(kl=0.01 * (lr / 0.2) ** 2)
            regulator.decide(lr_scale=scale)
            log.write(regulator, lr=lr)
    assert re.search(r"held at [\d to]+ % of the schedule from step", report.in_words(read(path)))


def test_one_is_no_plural(tmp_path: Path) -> None:
    run = logged(tmp_path / "run.jsonl", [0.5] * 3, Config(1))
    assert report.in_words(run).startswith("nominal 1 step; ")
    report.write(tmp_path / "page.html", [run])
    assert "run, changes of phase and alarms: 1<" in (tmp_path / "page.html").read_text()


def test_alarms_a_collapse_and_an_unfinished_warmup_in_words(tmp_path: Path) -> None:
    bad = report.in_words(logged(tmp_path / "bad.jsonl", COLLAPSING, Config(20, law="linear")))
    young = report.in_words(logged(tmp_path / "young.jsonl", [0.5] * 5, Config(20, law="linear")))
    assert "collapsed: the task reward ended at 0.05, from 0.85; score_drop at step 6" in bad
    assert young == "fixed linear warmup of 20 steps; not warm by step 4, its last, at 30 % of the peak"


def test_what_the_log_lacks_is_said_and_not_drawn_over(tmp_path: Path) -> None:
    logged(tmp_path / "run.jsonl", RISING, steady(20))
    run = without(tmp_path / "run.jsonl", range(30), range(50, 70))
    assert report.in_words(run).endswith("no line in the log for steps 0 to 29, 50 to 69")
    assert reading.ceilings(run) == pytest.approx([3e-3] * 50, rel=1e-3)  # also at 30 and 70, whose factor is unknown
    assert reading.nominal(run) == pytest.approx([1e-2] * 50, rel=1e-6)
    used = line(run, "lr", "value")
    broken = [i for i, row in enumerate(used.rows) if row == -1]
    assert [(used.steps[i - 1], used.steps[i + 1]) for i in broken] == [(49, 70)]
    assert all(math.isnan(used.steps[i]) and math.isnan(used.values[i]) for i in broken)
    assert [(span.start, span.end) for span in reading.spans(run)] == [(30, 50), (70, 100)]


def test_a_log_of_every_tenth_step_has_no_gaps(tmp_path: Path) -> None:
    whole = logged(tmp_path / "run.jsonl", RISING, steady(20))
    run = Run(whole.config, whole.about, whole.steps[::10])
    assert -1 not in line(run, "lr", "value").rows
    assert "no line" not in report.in_words(run)
    assert reading.nominal(run) == pytest.approx([5e-4, 5.5e-3, *[1e-2] * 8])
    assert reading.ceilings(run) == pytest.approx([3e-3] * 10, rel=1e-3)


def test_one_step_at_another_lr_does_not_move_the_ceiling(tmp_path: Path) -> None:
    """As where its gradient was an outlier and the update was cut."""
    run = logged(tmp_path / "run.jsonl", RISING, steady(20))
    run.steps[40]["lr"] *= 0.1
    assert reading.ceilings(run)[40] == pytest.approx(3e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("source", "lr_scale", "target"),
    [("post_update", 1.0, 0.01), ("probe", 1.0, 0.01), ("in_loop", 1.0, 0.001), ("clip_fraction", 0.5, 0.004375)],
)
def test_the_target_is_on_the_scale_of_the_kl(tmp_path: Path, source: str, lr_scale: float, target: float) -> None:
    run = logged(tmp_path / "run.jsonl", [0.5] * 30, Config(10), kl_source=source, lr_scale=lr_scale)
    drawn = line(run, "kl", "bound").values
    fall = [1, 1, 0.5, 0.25, 0.1, 0.1] if lr_scale == 1.0 else [1, 1, 1, 1, 0.4, 0.4]  # it is at a quarter by itself
    assert [drawn[step] / target for step in (0, 1, 4, 9, 24, 29)] == pytest.approx(fall)
    assert reading.nominal(run)[20:] == pytest.approx([1e-2 * lr_scale] * 10)


def test_bounds_are_those_that_the_alarms_have(tmp_path: Path) -> None:
    """The drop rings at the step whose level falls below the bound that is drawn there."""
    run = logged(tmp_path / "run.jsonl", COLLAPSING, steady(20))
    bound = line(run, "task_reward", "bound")
    assert bound.steps[0] == 9  # eight steps have settled the level
    rung = next(event.step for event in reading.events(run) if event.alarms)
    assert rung in range(60, 64)
    assert 0.3 < bound.values[bound.steps.index(rung)] < 0.9
    marks = [mark for panel in panels.story([run]).panels for mark in panel.marks if mark.kind == "alarm"]
    assert [mark.step for mark in marks] == [rung, rung]  # on the lr and on the task reward
    assert any("score_drop: the task reward is at" in line for line in panels.note(run, rung))


def test_runs_of_one_name_are_told_apart() -> None:
    def named(**about: Any) -> Run:
        return Run(Config(5), about, [])

    assert reading.names([named(arm="a", seed=0), named(arm="a", seed=1), named(arm="b", seed=1)]) == [
        "a, seed 0",
        "a, seed 1",
        "b",
    ]
    assert reading.names([named(), named()]) == ["feedback (1)", "feedback (2)"]
    assert reading.in_common([named(arm="a", task="x", seed=0), named(arm="b", task="x", seed=1)]) == "task x"


def test_a_run_without_rewards_or_evaluation_is_reported_too(tmp_path: Path) -> None:
    regulator = Regulator(Config(5))
    with DecisionLog(tmp_path / "bare.jsonl", regulator.config) as log:
        regulator.decide()
        log.write(regulator, lr=0.0)  # nothing that an axis in logs could hold
    run = read(tmp_path / "bare.jsonl")
    assert math.isnan(report.outcome(run).score)
    assert not report.outcome(run).collapsed
    for name in ("report.html", "report.png"):
        report.write(tmp_path / name, [run])
        assert (tmp_path / name).stat().st_size > 1000
    assert "feedback: nominal 5 steps" in plain.text([run])


def test_the_page_is_self_contained_and_escapes_names(tmp_path: Path) -> None:
    path = tmp_path / "<b>sly&{{data}}.jsonl"
    report.write(tmp_path / "report.html", [logged(path, COLLAPSING, steady(20))])
    page = (tmp_path / "report.html").read_text()
    assert "<b>sly&" not in page
    assert "&lt;b&gt;sly&amp;{{data}}" in page
    assert "<script src=" not in page
    assert '<link rel="stylesheet"' not in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["names"] == ["<b>sly&{{data}}"]
    assert [panel["key"] for panel in data["panels"]] == ["lr", "kl", "task_reward", "kl_reward"]
    assert any("backing off" in " ".join(note) for note in data["notes"][0])


def test_a_picture_shows_every_run_in_its_colour(tmp_path: Path) -> None:
    runs = [logged(tmp_path / "cost $5.jsonl", RISING, steady(20)), logged(tmp_path / "b.jsonl", RISING, Config(9))]
    report.write(tmp_path / "report.png", runs)
    pixels = (imread(tmp_path / "report.png")[:, :, :3] * 255).round().astype(int)
    assert pixels.shape[1] == 1500
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (pixels == colour).all(axis=2).sum() > 1000
    report.write(tmp_path / "report.pdf", runs)
    with pytest.raises(ValueError, match=r"report\.jpg is neither a page \(\.html\) nor a picture \(\.png, \.pdf"):
        report.write(tmp_path / "report.jpg", runs)
    report.write(tmp_path / "report.SVG", runs)
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (tmp_path / "report.SVG").read_text()


@pytest.mark.parametrize("width", [76, 80, 100])
def test_the_plain_view_fits_and_is_ascii(tmp_path: Path, width: int) -> None:
    run = logged(tmp_path / "a.jsonl", COLLAPSING, steady(20))
    other = logged(tmp_path / "b.jsonl", RISING, Config(20, law="linear"))
    for runs in ([run], [run, other]):
        text = plain.text(runs, width)
        assert text.isascii()
        assert max(map(len, text.splitlines())) <= width
        assert "held at" in " ".join(text.split())
        assert "! score_drop: the task reward is at" in " ".join(text.split())


def test_more_steps_than_columns_and_more_than_a_few_thousand(tmp_path: Path) -> None:
    """An alarm at every step, too: nothing may grow with the square of the run."""
    few = logged(tmp_path / "run.jsonl", COLLAPSING, steady(20)).steps
    steps = [few[-1] | {"step": t, "phase": few[t % 2]["phase"]} for t in range(20_000)]
    begin = time.monotonic()
    text = plain.text([Run(Config(20), {}, steps)])
    assert time.monotonic() - begin < 20
    assert max(map(len, text.splitlines())) <= 80


def test_the_plain_chart_of_hand_checkable_numbers(tmp_path: Path) -> None:
    """lr 1, 2, 4 on a log axis: 24 columns each, bottom to top; its highest row is 1.5 times the highest lr."""
    regulator = Regulator(Config(4, law="linear"))
    with DecisionLog(tmp_path / "run.jsonl", regulator.config) as log:
        for lr in (1.0, 2.0, 4.0):
            regulator.decide()
            log.write(regulator, lr=lr)
    text = plain.text([read(tmp_path / "run.jsonl")], 9 + 72)
    rows = [row.split("|")[1] for row in text.split("Learning rate")[1].splitlines() if "|" in row]
    assert [(i, row.index("o")) for i, row in enumerate(rows) if "o" in row] == [(2, 48), (5, 24), (8, 0)]
    assert "6.0e0 |" in text


def test_the_command_draws_a_folder_of_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged(tmp_path / "runs" / "a.jsonl", RISING, steady(20))
    logged(tmp_path / "runs" / "b.jsonl", COLLAPSING, Config(20, law="linear"))
    cut = (tmp_path / "runs" / "b.jsonl").read_text()[:-30]
    (tmp_path / "runs" / "b.jsonl").write_text(cut)
    assert main(["report", str(tmp_path / "runs"), "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").stat().st_size > 100_000
    assert "b.jsonl, line 81: not a whole JSON line" in capsys.readouterr().err


def test_nothing_is_written_over_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged(tmp_path / "a.jsonl", RISING, steady(20))
    for name in ("page.html", "picture.png"):
        arguments = ["report", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / name)]
        (tmp_path / name).write_text("mine")
        assert main(arguments) == 2
        assert "say --force" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "mine"
        assert main([*arguments, "--force"]) == 0
        assert (tmp_path / name).stat().st_size > 10_000


def test_plain_goes_through_a_pipe_and_writes_no_file(tmp_path: Path) -> None:
    logged(tmp_path / "a.jsonl", RISING, steady(20))
    command = [sys.executable, "-m", "adaptive_warmup", "report", str(tmp_path / "a.jsonl"), "--plain"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the ceiling at lr 3.0e-3" in " ".join(done.stdout.split())
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    logged(tmp_path / "a.jsonl", RISING, steady(20))
    command = [sys.executable, "-m", "adaptive_warmup", "report", str(tmp_path / "a.jsonl"), "--plain"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    assert (running.wait(60), running.stderr.read()) == (0, "")


def test_one_bad_log_does_not_cost_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged(tmp_path / "good.jsonl", RISING, steady(20))
    (tmp_path / "foreign.jsonl").write_text('{"step": 1, "loss": 2}\n')
    DecisionLog(tmp_path / "empty.jsonl", Config(5)).close()
    assert main(["report", str(tmp_path), "--plain"]) == 1
    said = capsys.readouterr()
    assert "foreign.jsonl, line 1: no decision log" in said.err
    assert "empty.jsonl, line 2: no step yet" in said.err
    assert "good: nominal 20 steps" in said.out


@pytest.mark.parametrize(
    ("content", "words"), [(None, "check the path"), ("nonsense\n", "line 1: no decision log"), ("", "line 1")]
)
def test_what_cannot_be_drawn_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "x.jsonl").write_text(content)
    assert main(["report", str(tmp_path / "x.jsonl"), "-o", str(tmp_path / "page.html")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_an_empty_folder_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    assert "no decision log" in capsys.readouterr().err
    (tmp_path / "page.html").touch()  # which is not the first thing to say, where there is nothing to draw
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    assert "no decision log" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no step yet"):
        report.write(tmp_path / "page.html", [Run(Config(5), {}, [])])


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["report", "--help"], ["--version"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    assert "adaptive-warmup" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["demo", "--lr", "-1"], ["demo", "--steps", "0"], ["dance"], []])
def test_bad_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        ([-10.0 + 0.1 * (-1) ** i for i in range(60)], ""),  # steady, rising, and falling back, all below zero
        ([-10.0 + 8.0 * i / 60 for i in range(60)], ""),
        ([-2.0 + 0.1 * (-1) ** i for i in range(40)] + [-10.0 + 0.1 * (-1) ** i for i in range(20)],
         "the task reward ended at -10, from -2"),
        ([0.5] + [0.2] * 60, ""),  # one lucky step at the start is no best
        ([0.0, 0.0, 1 / 64, 0.0, 0.0, 0.0], ""),  # one episode of hundreds, by chance
        ([0.03 + 0.015 * (-1) ** i for i in range(50)] + [0.0] * 50, "the task reward ended at 0, from 0.03"),
    ],
)  # fmt: skip
def test_a_collapse_is_a_fall_and_no_sign(tmp_path: Path, rewards: list[float], words: str) -> None:
    run = logged(tmp_path / "run.jsonl", rewards, Config(20, law="linear"))
    assert ("collapsed: " + words in report.in_words(run)) == bool(words)
    assert report.outcome(run).collapsed == bool(words)


@pytest.mark.parametrize("level", [-50.0, -5.0, 5.0])
def test_a_score_that_wanders_by_little_beside_its_size_has_not_collapsed(tmp_path: Path, level: float) -> None:
    """So slowly that its steps know nothing of it; it ends at its lowest."""
    waves = [level + 0.4 * math.cos(t / 15) for t in range(48)]
    assert not report.outcome(logged(tmp_path / "run.jsonl", waves, Config(20, law="linear"))).collapsed


def test_a_collapse_in_the_evaluation_alone_is_told_as_one(tmp_path: Path) -> None:
    run = logged(tmp_path / "run.jsonl", [0.9] * 60, Config(20, law="linear"))
    run.steps[-1]["metrics"] = {"evaluation": 0.3}
    assert "collapsed: the final score ended at 0.3, after task rewards of 0.9" in report.in_words(run)


def test_a_single_tiny_kl_is_drawn_as_text(tmp_path: Path) -> None:
    run = logged(tmp_path / "run.jsonl", [0.5] * 5, Config(20, law="linear"))
    for step in run.steps:
        step["signals"]["kl"] = 1e-10
    assert "Policy KL" in plain.text([run], 80)
