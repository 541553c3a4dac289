"""What the controller would have done on runs of the past: the evidence, the alarms, the death, and how sure it is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_warmup import Config, Regulator
from adaptive_warmup.cli import main
from adaptive_warmup.history import DecisionLog
from adaptive_warmup.readers import decision_log, read
from adaptive_warmup.replay import Moment, Setup, replay, setup
from adaptive_warmup.verdict import Verdict, judge
from tests.plant import Plant

PEAK = 1e-3


def ramp(step: int, warmup: int) -> float:
    """transformers' linear warmup, whose first step has lr 0."""
    return min(step / warmup, 1.0)


def logged(path: Path, steps: int, warmup: int = 50, every: int = 1, lr: bool = True, **signals: Any) -> Path:
    """The log of a run; each signal a function of the step and of the share of the peak it ran at."""
    with path.open("w") as file:
        for step in range(0, steps, every):
            share = ramp(step, warmup)
            row = {"step": step + 1, **{name: signal(step, share) for name, signal in signals.items()}}
            file.write(json.dumps(row | ({"learning_rate": PEAK * share} if lr else {})) + "\n")
    return path


def kl(plant: Plant) -> dict[str, Any]:
    return {"policy/kl": lambda step, share: plant.kl(step, share) or 0.0}


def replayed(path: Path, **settings: Any) -> tuple[Setup, list[Moment], Verdict]:
    past = read(path).past
    made = setup(past, **{"base": None, "lr": None, "warmup_steps": None, "target_kl": None, **settings})
    moments = list(replay(past, made))
    return made, moments, judge(past, moments)


# --- The lr that the run used ---


@given(st.floats(0.01, 5.0), st.integers(2, 60))
def test_the_ceiling_is_what_the_run_bore_whatever_the_controllers_own_lr(
    tmp_path_factory: pytest.TempPathFactory, bears: float, warmup: int
) -> None:
    """The run goes through its own warmup, and the controller through another: the estimate rests on the run's lr."""
    path = logged(tmp_path_factory.mktemp("run") / "run.jsonl", 80, warmup, **kl(Plant(bears=bears)))
    _, moments, _ = replayed(path)
    assert moments[0].bears is None  # lr 0: no update, no evidence
    for moment in moments[1:]:
        assert moment.bears == pytest.approx(bears)
        assert moment.factor * moment.signals.lr_scale == pytest.approx(moment.used)


def test_a_run_of_the_controllers_own_is_decided_the_same_again(tmp_path: Path) -> None:
    """Its lr is its own decision, so nothing differs, and all is certain."""
    plant, regulator, decided = Plant(bears=0.3, noise=0.6, missing=0.1), Regulator(Config(30)), []
    with DecisionLog(tmp_path / "run.jsonl", regulator.config) as log:
        for step in range(120):
            factor = regulator.decision.factor
            regulator.observe(kl=plant.kl(step, factor), task_reward=0.5)
            decided.append(regulator.decide().factor)
            log.write(regulator, lr=PEAK * factor)
    base, peak = decision_log.settings(tmp_path / "run.jsonl")
    made, moments, verdict = replayed(tmp_path / "run.jsonl", base=base, lr=peak)
    assert made.rates.peak == pytest.approx(PEAK)  # though the run never came to it
    assert [moment.decision.factor for moment in moments] == pytest.approx(decided, rel=1e-5)  # the log rounds lrs
    assert verdict.differs is None
    assert verdict.held is not None
    assert verdict.finished is None
    assert all(event.certain for event in verdict.events)


def test_a_steady_score_without_kl_takes_as_long_as_the_runs_own_warmup(tmp_path: Path) -> None:
    made, moments, verdict = replayed(logged(tmp_path / "run.jsonl", 100, 20, reward=lambda step, share: 0.5))
    assert made.warmup_steps == made.rates.warmup_steps == 20
    assert [moment.factor for moment in moments] == pytest.approx([min(20 ** (t / 19 - 1), 1.0) for t in range(100)])
    assert not verdict.alarms


def test_of_two_nominal_warmups_the_lead_of_a_step_is_no_difference(tmp_path: Path) -> None:
    """transformers' begins at 0: the second step has 1 / W in the one and 2 / W in the other. Logs round lrs."""
    for warmup in range(2, 60):
        rows = [{"step": step, "loss": 1.0, "learning_rate": float(f"{ramp(step, warmup):.3g}")} for step in range(70)]
        (tmp_path / "run.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        _, moments, verdict = replayed(tmp_path / "run.jsonl", warmup_steps=warmup)
        assert (moments[1].factor, moments[1].own) == pytest.approx((2 / warmup, 1 / warmup), rel=0.005)
        assert verdict.differs is None


def test_a_kl_of_a_step_at_lr_0_is_no_evidence(tmp_path: Path) -> None:
    """Its noise, or that of the sampler, say."""
    path = logged(tmp_path / "run.jsonl", 30, 20, **{"policy/kl": lambda step, share: 0.02 + share})
    _, moments, _ = replayed(path)
    assert [(moment.used, moment.bears, moment.signals.kl) for moment in moments[:1]] == [(0.0, None, None)]
    assert moments[1].bears is not None


def test_cuts_within_eight_rows_are_one(tmp_path: Path) -> None:
    def bears(step: int) -> float:
        return 1.0 if step < 10 else 0.3 if step < 15 else 0.1 if step < 40 else 0.02

    path = logged(tmp_path / "run.jsonl", 60, 1, **kl(Plant(bears=bears)))
    _, moments, verdict = replayed(path, warmup_steps=1)
    cuts = [moment.step for moment in moments if moment.decision.phase == "backing_off"]
    assert any(cut in range(16, 20) for cut in cuts)  # the second fall
    assert [event.step for event in verdict.events if "backing off" in event.what] == [2, 11, 41]  # 2: the target falls


def test_from_where_the_lr_is_far_from_the_runs_nothing_is_certain(tmp_path: Path) -> None:
    """The KL is far below its target: the controller rises 300^(1/2) = 17-fold a step while the run takes 300 steps.

    The run's first step has lr 0 and tells nothing; so the first such rise is from 2 / 300, where the run is then.
    """
    _, moments, verdict = replayed(logged(tmp_path / "run.jsonl", 400, 300, **kl(Plant(bears=5.0))))
    assert moments[2].own == pytest.approx(2 / 300)
    assert moments[2].factor == pytest.approx(300**0.5 * 2 / 300)
    assert verdict.differs == moments[2].step


def test_where_the_schedule_is_at_zero_the_controller_waits_as_it_does_live(tmp_path: Path) -> None:
    shares = [1 / 3, 2 / 3, 1.0, *[0.0] * 20, *[1.0] * 10]  # a ramp, frozen, thawed
    rows = [{"step": step, "loss": 1.0, "learning_rate": PEAK * share} for step, share in enumerate(shares)]
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, moments, _ = replayed(tmp_path / "run.jsonl", warmup_steps=10)
    expected = [0.1, 0.2, 0.3, *[0.4] * 21, 0.5, 0.6, 0.7, 0.8, 0.9, *[1.0] * 4]
    assert [moment.factor for moment in moments] == pytest.approx(expected)


def test_steps_at_a_decayed_lr_are_no_excess(tmp_path: Path) -> None:
    """The schedule lies on top: a run that decays at what it bears is never above it, nor far from the controller."""
    with (tmp_path / "run.jsonl").open("w") as file:
        for step in range(100):
            share = min((step + 1) / 10, 1.0) * (1.0 if step < 10 else 1.0 - (step - 10) / 100)
            row = {"step": step, "policy/kl": 0.0099 * share**2, "learning_rate": PEAK * share}
            file.write(json.dumps(row) + "\n")
    _, moments, verdict = replayed(tmp_path / "run.jsonl")
    assert verdict.above == 0
    assert moments[-1].own == 1.0
    assert moments[-1].used == pytest.approx(0.11)
    assert verdict.ceiling == pytest.approx(math.sqrt(0.01 / 0.0099))


def test_how_far_the_run_was_above_what_it_bore(tmp_path: Path) -> None:
    """It bears .25 of the peak and warms up over 100 steps: above from step 26 on, twice that from 51 on."""
    _, _, verdict = replayed(logged(tmp_path / "run.jsonl", 120, 100, **kl(Plant(bears=0.2501))))
    assert verdict.above == 120 - 26
    assert verdict.far_above == 52  # the log counts from 1
    assert verdict.most == pytest.approx(1 / 0.2501)


# --- Settings ---


def test_the_runs_own_warmup_is_seen_at_any_resolution(tmp_path: Path) -> None:
    for warmup in (1, 7, 40):
        assert replayed(logged(tmp_path / "a.jsonl", 100, warmup, reward=lambda s, _: 0.5))[0].warmup_steps == warmup
    made, moments, _ = replayed(logged(tmp_path / "b.jsonl", 400, 100, every=10, reward=lambda s, _: 0.5))
    assert (made.warmup_steps, made.config.warmup_steps, len(moments)) == (100, 10, 40)
    assert any("one step in 10" in sentence for sentence in made.assumed)


def test_a_warmup_that_the_log_does_not_see_the_end_of(tmp_path: Path) -> None:
    path = logged(tmp_path / "run.jsonl", 50, 100, reward=lambda s, _: 0.5)
    made = replayed(path)[0]
    assert made.rates.unfinished
    assert made.rates.peak == pytest.approx(PEAK * 0.49)
    made = replayed(path, lr=PEAK)[0]
    assert (made.warmup_steps, made.rates.unfinished) == (100, False)
    with pytest.raises(ValueError, match=r"lr=0\.0001 is below the highest in the log, 0\.00049"):
        replayed(path, lr=1e-4)


def test_an_lr_that_only_leaps_shows_no_warmup(tmp_path: Path) -> None:
    """Low and flat, then at the peak: there is no slope."""
    path = tmp_path / "run.jsonl"
    lines = [{"step": step, "reward": 0.5, "lr": PEAK * (0.01 if step < 10 else 1.0)} for step in range(40)]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    made, _, _ = replayed(path)
    assert made.rates.warmup_steps is None
    assert made.warmup_steps == 4  # a tenth of the run
    assert made.assumed[0].startswith("the run's own warmup cannot be seen")


def test_a_constant_lr_shows_no_warmup(tmp_path: Path) -> None:
    made, _, verdict = replayed(logged(tmp_path / "run.jsonl", 200, 1, reward=lambda s, _: 0.5))
    assert made.warmup_steps == 1
    path = tmp_path / "constant.jsonl"
    path.write_text("".join(json.dumps({"step": t, "reward": 0.5, "lr": PEAK}) + "\n" for t in range(200)))
    made, _, verdict = replayed(path)
    assert made.warmup_steps == 20
    assert verdict.differs == 0  # it would have begun at a 20th
    assert any("a tenth of the run, 20 steps" in sentence for sentence in made.assumed)


def test_what_is_of_no_known_lr_or_rounded_to_nothing_is_no_update_that_was_skipped(tmp_path: Path) -> None:
    """Of a log whose lr stands in every other row, and one whose KL has three decimals."""
    seldom = [{"policy/kl": 0.002, **({"learning_rate": PEAK} if t % 2 else {})} for t in range(40)]
    rounded = [{"policy/kl": round(0.0006 * (t % 3), 3), "learning_rate": PEAK} for t in range(39)]
    for number, log in enumerate((seldom, rounded)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"step": step, **row}) + "\n" for step, row in enumerate(log)))
        _, moments, _ = replayed(path, warmup_steps=10)
        assert not any("no update" in moment.decision.reasons[0] for moment in moments)
        assert moments[20].bears == pytest.approx(math.sqrt(0.01 / 0.002), rel=0.45)  # the KLs there are, .001 and .002


def test_a_kl_of_zero_to_the_end_of_the_run_is_no_rounding(tmp_path: Path) -> None:
    dead = logged(tmp_path / "run.jsonl", 40, 1, **{"policy/kl": lambda step, share: 0.04 if step < 30 else 0.0})
    _, moments, _ = replayed(dead, warmup_steps=10)
    assert [moment.decision.reasons[0].split(":")[0] for moment in moments[30:36]] == ["no update"] * 6


def test_where_the_lr_is_unknown_the_pace_is_nominal_and_where_it_has_come_to_0_nothing_moves(tmp_path: Path) -> None:
    _, moments, _ = replayed(logged(tmp_path / "unknown.jsonl", 40, lr=False, loss=lambda step, share: 1.0))
    assert [moment.factor for moment in moments] == pytest.approx([min((t + 1) / 4, 1.0) for t in range(40)])
    rows = [{"step": t, "learning_rate": lr, "policy/kl": 0.04} for t, lr in enumerate([PEAK] * 20 + [0.0] * 20)]
    (tmp_path / "ended.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, moments, _ = replayed(tmp_path / "ended.jsonl", warmup_steps=40)
    assert {moment.factor for moment in moments[20:]} == {moments[20].factor}
    assert moments[20].factor < 1.0


def test_without_an_lr_the_kl_says_nothing_unless_the_warmup_is_told(tmp_path: Path) -> None:
    path = logged(tmp_path / "run.jsonl", 60, 1, lr=False, **kl(Plant(bears=0.5)))
    made, moments, _ = replayed(path)
    assert all(moment.bears is None for moment in moments)
    assert "say --warmup-steps" in made.assumed[0]
    made, moments, _ = replayed(path, warmup_steps=1)
    assert moments[-1].bears == pytest.approx(0.5)
    assert "is assumed" in made.assumed[0]


@pytest.mark.parametrize("settings", [{"target_kl": 0.04}, {"target_kl": None}])
def test_the_ceiling_goes_with_the_root_of_the_target(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = logged(tmp_path / "run.jsonl", 60, 10, **kl(Plant(bears=0.5)))
    expected = 1.0 if settings["target_kl"] else 0.5
    assert replayed(path, **settings)[1][-1].bears == pytest.approx(expected)


# --- Death and alarms ---


def scores(path: Path, values: list[float]) -> Verdict:
    return replayed(logged(path, len(values), 10, reward=lambda step, _: values[step]))[2]


def test_death_is_the_step_at_which_the_mean_falls_below_half_for_good(tmp_path: Path) -> None:
    """With five zeros among eight scores of .8 the mean is .3, below .4: the fifth zero is row 44, step 45."""
    verdict = scores(tmp_path / "a.jsonl", [0.8] * 40 + [0.0] * 20)
    assert verdict.death is not None
    assert (verdict.death.step, "0.8" in verdict.death.why) == (45, True)


def test_a_score_below_zero_dies_of_losing_half_of_what_it_had_gained(tmp_path: Path) -> None:
    """From -10 to -2, and back: the mean of eight passes -6 with the fifth -10, which is row 54, step 55."""
    verdict = scores(tmp_path / "a.jsonl", [-10.0] * 10 + [-2.0] * 40 + [-10.0] * 20)
    assert verdict.death is not None
    assert (verdict.death.step, "half of the way to its best, -2" in verdict.death.why) == (55, True)


@pytest.mark.parametrize(
    "values",
    [
        [0.8] * 40 + [0.0] * 20 + [0.8] * 20,  # it came back
        [0.01 * t for t in range(80)],  # it began low
        [-5.0 + 0.4 * (t // 20 % 2) for t in range(90)],  # a wave that is small beside what it is a wave of
        [0.8, 0.0, 0.0],  # too short to tell
    ],
)
def test_no_death(tmp_path: Path, values: list[float]) -> None:
    assert scores(tmp_path / "a.jsonl", values).death is None


def test_nan_to_the_end_is_death_and_nan_in_between_is_not(tmp_path: Path) -> None:
    assert scores(tmp_path / "a.jsonl", [0.5] * 20 + [math.nan] + [0.5] * 20).death is None
    verdict = scores(tmp_path / "b.jsonl", [0.5] * 20 + [math.nan] * 3)
    assert verdict.death is not None
    assert (verdict.death.step, verdict.death.why) == (21, "task_reward was nan from there to the end")
    assert [(one.name, one.first, one.lead) for one in verdict.alarms] == [("non_finite", 21, 0)]


def test_one_nan_in_the_last_row_is_no_death_and_one_that_came_back_no_warning_of_it(tmp_path: Path) -> None:
    once = [0.5] * 3 + [math.nan] + [0.5] * 8 + [math.nan]
    assert scores(tmp_path / "a.jsonl", once).death is None
    verdict = scores(tmp_path / "b.jsonl", [*once, math.nan])
    assert verdict.death is not None
    assert verdict.death.step == 13
    assert [(one.name, one.first, one.lead) for one in verdict.alarms] == [("non_finite", 4, 0)]


def test_the_lead_of_an_alarm_that_rang_until_the_death_and_none_of_one_that_had_stopped(tmp_path: Path) -> None:
    """A KL reward that pays for 12 steps early on, and again for good; the score dies 30 steps later."""

    def pays(step: int, share: float) -> float:
        return 0.5 if 20 <= step < 32 or step >= 100 else -0.5

    falling = [0.8] * 130 + [0.0] * 40
    path = logged(
        tmp_path / "run.jsonl", 170, 10, reward=lambda step, _: falling[step], **{"objective/non_score_reward": pays}
    )
    _, _, verdict = replayed(path)
    assert verdict.death is not None
    assert verdict.death.step == 135
    early, late = (one for one in verdict.alarms if one.name == "kl_gaming")
    assert early.lead is None
    assert 101 <= late.first <= 108
    assert late.lead == 135 - late.first
    (drop,) = (one for one in verdict.alarms if one.name == "score_drop")
    assert drop.lead is not None
    assert 0 <= drop.lead <= 5


# --- The command ---


def collapse(path: Path) -> Path:
    values = [0.2 + 0.006 * t for t in range(100)] + [0.05] * 30
    return logged(path, 130, 60, reward=lambda step, _: values[step], **kl(Plant(bears=0.1, noise=0.3)))


def test_text_and_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(collapse(tmp_path / "bad.jsonl"))]) == 1
    text = capsys.readouterr().out
    assert "bad.jsonl: JSON lines, 130 steps, 1 to 130" in text
    assert "policy/kl" in text
    assert "k3 after the step's last update, nats per response token" in text
    assert "peak lr 0.001, its own warmup 60 steps" in text
    assert "died at step 10" in text
    assert "score_drop: step 10" in text
    assert "a guess: from step" in text
    calm = logged(tmp_path / "good.jsonl", 50, 10, reward=lambda step, _: 0.5)
    assert main(["replay", str(calm)]) == 0
    assert "no alarm would have rung" in capsys.readouterr().out
    (tmp_path / "foreign.csv").write_text("a,b\n1,2\n")
    for path in (tmp_path / "foreign.csv", tmp_path / "gone", tmp_path):
        assert main(["replay", str(path)]) == 2
        assert str(path) in capsys.readouterr().err


def test_one_is_no_plural(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(logged(tmp_path / "log.jsonl", 1, lr=False, reward=lambda *_: 0.5))]) == 0
    text = capsys.readouterr().out
    assert "JSON lines, 1 step, 1 to 1" in text
    assert "a tenth of the run, 1 step, is taken as nominal" in text
    assert "(warmup 1 step, target kl 0.01)" in text


def test_rollouts_that_are_counted_in_environment_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"step": 2048 * i, "train/learning_rate": 1e-3, "train/approx_kl": 0.01, "rollout/ep_rew_mean": 1.0}
             for i in range(1, 101)]  # fmt: skip
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert main(["replay", str(tmp_path / "log.jsonl")]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "a row is a rollout of 2048 steps, and a decision, as live; this warmup is of 10 rollouts" in words


def test_a_run_of_ours_in_its_hosts_log_is_told_from_a_fixed_warmup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = logged(
        tmp_path / "log.jsonl", 50, reward=lambda *_: 0.5, **{"adaptive_warmup/factor": lambda _, share: share}
    )
    assert main(["replay", str(path)]) == 0
    assert "the run was under adaptive warmup, whose lr is taken for its schedule" in capsys.readouterr().out


def test_of_many_alarms_the_first_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = logged(tmp_path / "log.jsonl", 800, reward=lambda step, _: math.nan if step % 40 == 20 else 0.5)
    assert main(["replay", str(path)]) == 1
    out = capsys.readouterr().out
    assert out.count("non_finite: step") == 12
    assert "  and 8 more (--json lists them)\n" in out


def test_what_is_as_good_as_on_target_is_not_called_above_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Above by 1 %, which would read "by up to 1 times"."""
    path = logged(tmp_path / "log.jsonl", 100, 10, **{"policy/kl": lambda _, share: 0.0102 * share**2})
    assert main(["replay", str(path)]) == 0
    assert "was above what it bears" not in capsys.readouterr().out


def test_scores_whose_squares_overflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = logged(tmp_path / "log.jsonl", 40, reward=lambda step, _: 1e300 * (-1.0) ** step)
    assert main(["replay", str(path)]) == 1
    assert "non_finite: step 1 to 40" in capsys.readouterr().out


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["replay", "--help"])
    assert stopped.value.code == 0
    assert "Exit code: 0 no alarm would have rung, 1 some would, 2 bad input." in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--warmup-steps", "1e-3", "1e-3 must be a whole number, 1 or more"),
        ("--warmup-steps", "ten", "ten must be a whole number, 1 or more"),
        ("--lr", "high", "high must be a positive number, such as 1e-6"),
        ("--target-kl", "nan", "nan must be a positive number, such as 1e-6"),
    ],
)
def test_a_number_that_is_none(option: str, value: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["replay", option, value, "log.jsonl"])
    assert stopped.value.code == 2
    assert f"argument {option}: {words}\n" in capsys.readouterr().err


def test_json_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(collapse(tmp_path / "bad.jsonl")), "--json", "--target-kl", "0.02"]) == 1
    out, err = capsys.readouterr()
    content = json.loads(out)
    assert err == ""
    assert content["steps"] == {"count": 130, "first": 1, "last": 130, "every": 1}
    assert content["run"] == {"peak_lr": PEAK, "warmup_steps": 60}
    assert content["controller"] == {"warmup_steps": 60, "target_kl": 0.02}
    assert {one["signal"]: one["key"] for one in content["taken"]}["kl"] == "policy/kl"
    assert content["death"]["step"] > 100
    assert content["alarms"][0]["name"] == "score_drop"
    assert [event["certain"] for event in content["events"]].count(True) >= 1
    assert not content["events"][-1]["certain"]


def test_keys_of_the_users_own_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.csv"
    path.write_text("step,R=x,drift\n" + "".join(f"{t},0.5,0.001\n" for t in range(30)))
    assert main(["replay", str(path), "--map", "R=x=task_reward", "--map", "drift=kl:probe"]) == 0
    assert "R=x" in capsys.readouterr().out
    assert main(["replay", str(path), "--map", "drift=klx"]) == 2
    assert "Did you mean kl" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["replay", str(path), "--map", "drift"])
    assert stopped.value.code == 2


def test_the_page_is_drawn_and_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, page = str(collapse(tmp_path / "bad.jsonl")), tmp_path / "page.html"
    assert main(["replay", log, "-o", str(page)]) == 1
    text = page.read_text()
    assert "the run as it was" in text
    assert "the controller, replayed" in text
    page.write_text("mine")
    assert main(["replay", log, "-o", str(page)]) == 2
    assert (page.read_text(), "say --force" in capsys.readouterr().err) == ("mine", True)
    assert main(["replay", log, "-o", str(page), "--force"]) == 1
    assert page.read_text() != "mine"


def test_the_page_of_a_run_that_counts_from_below_zero(tmp_path: Path) -> None:
    """Where step -1 would have the target divided by zero."""
    lines = [{"step": step, "policy/kl": 0.001, "lr": PEAK} for step in range(-5, 20)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert main(["replay", str(tmp_path / "log.jsonl"), "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").exists()


def test_of_a_long_run_some_rows_are_drawn_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adaptive_warmup.commands.replay._MOST_DRAWN", 50)
    path = logged(tmp_path / "log.jsonl", 200, reward=lambda step, _: 0.5)
    assert main(["replay", str(path), "-o", str(tmp_path / "some.html")]) == 0
    assert f"{tmp_path / 'some.html'}, one row in 4\n" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["replay", str(path), "-o", str(tmp_path / "all.html")]) == 0
    assert (tmp_path / "some.html").stat().st_size < (tmp_path / "all.html").stat().st_size


def test_the_page_has_the_target_on_the_scale_of_the_kl(tmp_path: Path) -> None:
    """A KL read in the loop is at .001 where the post-update KL is at .01, the target of the first 24 / 4 steps."""
    path = logged(tmp_path / "run.jsonl", 100, 24, **kl(Plant(bears=0.1)))
    target = drawn(path, "--map", "policy/kl=kl:in_loop")["kl", "bound"]
    assert [target["values"][step] for step in (0, 5, 11, 59, 99)] == pytest.approx([1e-3, 1e-3, 5e-4, 1e-4, 1e-4])


def drawn(log: Path, *options: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The last line on the page of each panel and role."""
    page = log.with_suffix(".html")
    assert main(["replay", str(log), *options, "-o", str(page)]) in (0, 1)
    data = json.loads(page.read_text().split('id="data">')[1].split("</script>")[0])
    return {(panel["key"], line["role"]): line for panel in data["panels"] for line in panel["lines"]}


@pytest.mark.parametrize("every", [1, 10])
def test_the_page_of_a_log_that_begins_late_is_that_of_one_that_does_not(tmp_path: Path, every: int) -> None:
    """The controller that is replayed begins where the log does, and takes a row for a step."""
    path, late = logged(tmp_path / "run.jsonl", 100 * every, 24 * every, every, **kl(Plant(bears=0.1))), 5000
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    (tmp_path / "late.jsonl").write_text("".join(json.dumps(x | {"step": x["step"] + late}) + "\n" for x in lines))
    soon, later = drawn(path), drawn(tmp_path / "late.jsonl")
    for line in (("lr", "nominal"), ("lr", "ceiling"), ("kl", "bound")):
        assert later[line]["steps"] == [step + late for step in soon[line]["steps"]]
        assert later[line]["values"] == pytest.approx(soon[line]["values"])
    assert later["lr", "nominal"]["values"] == pytest.approx([PEAK * min((row + 1) / 24, 1.0) for row in range(100)])
    assert later["kl", "bound"]["values"] == pytest.approx(
        [0.01 * max(min(6 / (row + 1), 1.0), 0.1) for row in range(100)]
    )
    assert "no line in the log" not in (tmp_path / "late.html").read_text()


def test_a_page_of_a_log_with_gaps(tmp_path: Path) -> None:
    path = logged(tmp_path / "run.jsonl", 300, 60, every=10, **kl(Plant(bears=0.1)))
    assert main(["replay", str(path), "-o", str(tmp_path / "page.html")]) == 0


def test_our_own_log_under_other_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run under a fixed warmup, logged by us: the replay is of the adaptive one."""
    regulator, plant = Regulator(Config(40, law="linear")), Plant(bears=0.2)
    with DecisionLog(tmp_path / "fixed.jsonl", regulator.config) as log:
        for step in range(80):
            factor = regulator.decision.factor
            regulator.observe(kl=plant.kl(step, factor), task_reward=0.5)
            regulator.decide()
            log.write(regulator, lr=PEAK * factor)
    assert main(["replay", str(tmp_path / "fixed.jsonl"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["ceiling"] == pytest.approx(0.2)
    assert content["controller"]["warmup_steps"] == 40
    assert "80 of its 80 decisions" in content["file"][0]
