"""Outcomes, words and the page, from logs of simulated runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from adaptive_warmup import Config, Regulator, report
from adaptive_warmup.cli import main
from adaptive_warmup.history import DecisionLog, Run, read
from tests.plant import Plant


def logged(path: Path, scores: list[float], config: Config, bears: float = 0.3) -> Run:
    plant, regulator = Plant(bears=bears), Regulator(config)
    with DecisionLog(path, config, arm=path.stem, lr=1e-2) as log:
        for step, score in enumerate(scores):
            factor = regulator.decision.factor
            regulator.observe(kl=plant.kl(step, factor), task_reward=score, kl_reward=-0.1)
            regulator.decide()
            last = step == len(scores) - 1
            log.write(regulator, lr=1e-2 * factor, **({"evaluation": score} if last else {}))
    return read(path)


RISING = [min(0.3 + 0.01 * t, 0.9) for t in range(100)]
COLLAPSING = [*RISING[:60], *[0.05] * 20]


def test_outcome_in_numbers(tmp_path: Path) -> None:
    good = report.outcome(logged(tmp_path / "good.jsonl", RISING, Config(20)))
    bad = report.outcome(logged(tmp_path / "bad.jsonl", COLLAPSING, Config(20, law="linear")))
    assert (good.name, good.steps, good.collapsed, bad.collapsed) == ("good", 100, False, True)
    assert good.score == 0.9
    assert good.area == pytest.approx(sum(RISING) / 100)
    assert good.last_lr == pytest.approx(0.3e-2, rel=0.01)
    assert bad.highest_lr == pytest.approx(1e-2)


def test_outcome_in_words(tmp_path: Path) -> None:
    held = report.in_words(logged(tmp_path / "held.jsonl", RISING, Config(20)))
    warm = report.in_words(logged(tmp_path / "warm.jsonl", RISING, Config(20), bears=5.0))
    fixed = report.in_words(logged(tmp_path / "fixed.jsonl", RISING, Config(20, law="linear")))
    assert held == (
        "nominal 20 steps; not warm by step 99; held at 30 % of the peak from step 2: this run bears at most 3.0e-3"
    )
    assert warm == "nominal 20 steps; warm after 5"
    assert fixed == "fixed linear warmup of 20 steps; warm after 20"


def test_a_run_without_rewards_or_evaluation_is_reported_too(tmp_path: Path) -> None:
    regulator = Regulator(Config(5))
    with DecisionLog(tmp_path / "bare.jsonl", regulator.config) as log:
        regulator.decide()
        log.write(regulator, lr=0.1)
    outcome = report.outcome(read(tmp_path / "bare.jsonl"))
    assert math.isnan(outcome.score)
    assert not outcome.collapsed
    report.write(tmp_path / "report.html", [read(tmp_path / "bare.jsonl")])


def test_the_page_is_self_contained_and_escapes_names(tmp_path: Path) -> None:
    path = tmp_path / "<b>sly&.jsonl"
    report.write(tmp_path / "report.html", [logged(path, COLLAPSING, Config(20))])
    page = (tmp_path / "report.html").read_text()
    assert "<b>sly&" not in page.split("Plotly.newPlot")[0].split("plotly.js")[0]
    assert "&lt;b&gt;sly&amp;" in page
    assert "<script src=" not in page
    assert '<link rel="stylesheet"' not in page
    assert "backing off" in page or "rising to" in page


def test_the_command_draws_a_folder_of_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged(tmp_path / "runs" / "a.jsonl", RISING, Config(20))
    logged(tmp_path / "runs" / "b.jsonl", COLLAPSING, Config(20, law="linear"))
    cut = (tmp_path / "runs" / "b.jsonl").read_text()[:-30]
    (tmp_path / "runs" / "b.jsonl").write_text(cut)
    assert main(["report", str(tmp_path / "runs"), "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").stat().st_size > 100_000
    assert "b.jsonl, line 81: not a whole JSON line" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), ("nonsense\n", "line 1: no decision log"), ("", "line 1")]
)
def test_what_cannot_be_drawn_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "x.jsonl").write_text(content)
    assert main(["report", str(tmp_path / "x.jsonl"), "-o", str(tmp_path / "page.html")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_an_empty_folder_or_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "no decision log" in capsys.readouterr().err
    DecisionLog(tmp_path / "empty.jsonl", Config(5)).close()
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    assert "no step yet" in capsys.readouterr().err


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
