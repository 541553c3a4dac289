"""The controller and its feedback law on streams of signals, as numbers; what holds of every law is in test_testing."""

from __future__ import annotations

import itertools
import math
import statistics
import subprocess
import sys

import numpy as np
import pytest

from adaptive_warmup import controller
from adaptive_warmup.controller import Config, State
from adaptive_warmup.signals import Signals
from adaptive_warmup.testing.laws import decide
from tests.plant import Plant, factors, run, steady


@pytest.mark.parametrize("signal", ["kl", "task_reward", "grad_norm", "loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_broken_signal_holds_and_is_named(signal: str, value: float) -> None:
    config = Config(10)
    state, before = controller.step(config, controller.start(config), Signals(kl=1e-4, task_reward=0.1))
    state, decision = controller.step(config, state, Signals(**{"task_reward": 0.1, signal: value}))
    assert decision.factor == pytest.approx(before.factor)
    assert decision.phase == "holding"
    assert f"{signal} is {value}" in decision.reasons[0]
    assert [alarm.name for alarm in decision.alarms] == ["non_finite"]


def test_safe_kl_shortens_to_the_stated_minimum_and_not_further() -> None:
    safe = Plant(bears=50.0)
    for config, shortest in [(Config(100), 3), (Config(100, min_warmup_steps=20), 20), (Config(2), 2)]:
        peak = [config.warmup_steps == 1, *(f == 1.0 for f in factors(config, safe, 30))].index(True)
        assert peak + 1 == shortest  # counted as the nominal warmup is: update number `warmup_steps` is at the peak


@pytest.mark.parametrize("every", [1, 4])
def test_plain_training_is_never_quicker_than_nominal_unless_told_to_be(every: int) -> None:
    """However safe each measured update looks; `min_warmup_steps=3` is told to: sqrt(20) twice, from 1 / 20."""

    def path(config: Config, bears: float) -> list[controller.Decision]:
        state, decisions = controller.start(config), []
        for t in range(60):
            kl = 0.03 * (state.factor / bears) ** 2 if t % every == 0 else None
            state, decision = controller.step(config, state, Signals(kl=kl, kl_source="training_probe"))
            decisions.append(decision)
        return decisions

    safe = path(Config(20), bears=50.0)
    assert [d.factor for d in safe] == pytest.approx([min(1.0, (t + 2) / 20) for t in range(60)])
    assert {d.expected_end for d in safe} == {19}
    assert [d.factor for d in path(Config(20), bears=0.3)][-30:] == pytest.approx([0.3] * 30)
    assert path(Config(20, min_warmup_steps=3), bears=50.0)[0].factor == pytest.approx(20**-0.5)


def clipped(source: str, spike: int | None = None) -> list[controller.Decision]:
    """A run whose KL is .006 at every lr, under a target of .02; at step `spike` it is .03."""
    kls = [0.03 if t == spike else 0.006 for t in range(20)]
    config = Config(6, target_kl=0.02, min_target_kl=0.02)
    return decide(config, [Signals(kl=kl, kl_source=source) for kl in kls])


def test_many_clipped_updates_on_a_rollout_are_not_held_back_by_a_kl_that_ignores_the_lr() -> None:
    """Believed by .15 a step, good news takes 18 steps to the peak; by four steps' worth, .48, it takes six."""
    at_the_peak = {source: next(d.step for d in clipped(source) if d.factor == 1.0) for source in
                   ("post_update", "post_update:1x2", "post_update:4x2", "post_update:4x8")}  # fmt: skip
    assert at_the_peak == {"post_update": 18, "post_update:1x2": 18, "post_update:4x2": 18, "post_update:4x8": 6}


def test_once_a_kl_has_exceeded_its_target_good_news_is_slow_again() -> None:
    """From a ceiling where the KL is .3 of the target, 15 % of it is believed, and nearly the whole way gone."""
    rises = [math.log(b.factor / a.factor) for a, b in itertools.pairwise(clipped("post_update:4x8", spike=2))]
    assert rises[0] > 0.2
    assert rises[1] < 0.0
    assert rises[3:7] == pytest.approx([-0.15 / 2 * math.log(0.3)] * 4, rel=0.02)


def test_the_kl_target_is_whole_at_first_then_falls_as_one_over_the_step() -> None:
    """A quarter of 100 steps; half the target at step 50, and the lr at 1 / sqrt(2); never below a tenth."""
    config = Config(100)
    targets = [config.target_at(step) for step in (0, 24, 49, 99, 249, 250, 10**6)]
    assert targets == pytest.approx([0.01, 0.01, 0.005, 0.0025, 0.001, 0.001, 0.001])
    assert {config.target_at(step, "training_probe") for step in (0, 49, 10**6)} == {0.01}
    assert {Config(100, min_target_kl=0.01).target_at(step) for step in (0, 49, 10**6)} == {0.01}
    assert [config.target_at(249, lr_scale=shape) for shape in (0.5, 10**-0.5, 0.1)] == pytest.approx(
        [0.004, 0.01, 0.01]
    )
    path = factors(config, Plant(bears=0.2), 300)
    assert [path[step] for step in (24, 49, 260)] == pytest.approx([0.2, 0.2 / 2**0.5, 0.2 / 10**0.5], rel=0.05)


def test_unsafe_kl_is_held_below_the_peak_as_long_as_needed() -> None:
    decisions = list(run(steady(20), Plant(bears=0.05), 500))
    assert all(d.factor < 0.06 for d in decisions[5:])
    assert {d.phase for d in decisions[10:]} == {"at_ceiling"}
    assert decisions[-1].expected_end is None
    assert decisions[-1].ceiling == pytest.approx(0.05)


def test_at_the_ceiling_is_from_nine_tenths_of_it_on() -> None:
    shares: dict[str, list[float]] = {"warmup": [], "at_ceiling": []}
    for decision in run(steady(100, min_warmup_steps=40), Plant(bears=0.3), 60):
        shares[decision.phase].append(decision.factor / 0.3)
    assert any(0.7 < share < 0.9 for share in shares["warmup"])
    assert max(shares["warmup"]) < 0.9 <= min(shares["at_ceiling"])


def test_when_signals_stop_the_pace_is_nominal_again() -> None:
    config = Config(100)
    state = controller.start(config)
    for _ in range(3):
        state, _ = controller.step(config, state, Signals(kl=1e-7))
    start = state.factor
    assert start > 3 / 100
    for step in range(1, 40):
        state, decision = controller.step(config, state, Signals())
        assert decision.factor == pytest.approx(min(1.0, start + step / 100))


def test_a_ceiling_outlives_a_gap_in_the_signals_but_not_for_ever() -> None:
    """For a nominal warmup without a word the ceiling stands; then it rises, by a doubling in each further one."""
    config, plant = steady(100), Plant(bears=0.2)
    state = controller.start(config)
    for step in range(50):
        state, _ = controller.step(config, state, Signals(kl=plant.kl(step, state.factor)))
    for _ in range(50):
        state, decision = controller.step(config, state, Signals())
        assert decision.factor == pytest.approx(0.2, rel=0.01)
    path = []
    for _ in range(300):
        state, decision = controller.step(config, state, Signals())
        path.append(decision.factor)
    assert path[49] == pytest.approx(0.2, rel=0.01)
    assert path[149] == pytest.approx(0.4, rel=0.01)
    assert path[-1] == 1.0


@pytest.mark.parametrize(("warmup", "every"), [(10, 20), (20, 50), (50, 100)])
def test_a_host_that_measures_less_often_than_the_warmup_is_long_is_held_all_the_same(warmup: int, every: int) -> None:
    """How far apart two KLs lay is known the next time, and the first time the ceiling only fades."""
    config, plant = Config(warmup, min_target_kl=0.01), Plant(bears=0.02)
    state, seen = controller.start(config), []
    for step in range(10 * every):
        kl = plant.kl(step, state.factor) if step % every == 0 else None
        seen += [kl] if kl else []
        state, _ = controller.step(config, state, Signals(kl=kl))
    assert max(seen[2:]) < 10 * 0.01
    assert max(seen[5:]) < 1.5 * 0.01


def test_a_fall_is_not_stopped_half_way_where_the_kl_stops() -> None:
    config = Config(10)
    state, _ = controller.step(config, State(factor=1.0, clock=10.0, step=1), Signals(kl=25.0))
    assert state.factor == pytest.approx(math.exp(-1.5))
    factors = []
    for _ in range(3):
        state, decision = controller.step(config, state, Signals())
        factors.append(decision.factor)
    assert factors == pytest.approx([math.exp(-3.0), 0.02, 0.02], rel=0.1)


def test_two_absurd_kls_in_a_row_are_believed_whatever_came_before() -> None:
    """A single one may be a reading gone wrong, and is not."""
    config, state, factors = steady(50), controller.start(steady(50)), []
    for step in range(106):
        kl = (3.0 if step >= 102 else 1e-5) * state.factor**2
        state, decision = controller.step(config, state, Signals(kl=kl))
        factors.append(decision.factor)
    assert factors[101:104] == pytest.approx([1.0, 1.0, math.exp(-1.5)])
    assert factors[105] == pytest.approx(math.sqrt(0.01 / 3.0), rel=0.01)


@pytest.mark.parametrize("silent", [10, 20, 40])
def test_a_least_length_is_kept_where_linear_and_exponential_steps_mix(silent: int) -> None:
    config = Config(100, min_warmup_steps=100)
    state, steps = controller.start(config), 0
    while state.factor < 1.0:
        kl = 1e-5 * state.factor**2 if state.step >= silent else None
        state, _ = controller.step(config, state, Signals(kl=kl))
        steps += 1
    assert steps == 99  # after the first, which runs at 1 / 100
    assert state.finished == 99


def test_at_the_floor_the_reason_says_what_is_done() -> None:
    config = Config(100)
    state = State(factor=0.002, clock=0.2, step=50)
    for _ in range(2):
        state, decision = controller.step(config, state, Signals(kl=5.0))
    assert decision.factor == 0.001
    assert decision.reasons[0].endswith("holding at 0.001")


def test_a_slow_probe_is_no_silence() -> None:
    """Measured at every 8th step, then at every 32nd, past the nominal warmup of 20, the ceiling stands in between."""
    config, plant = steady(20), Plant(bears=0.2)
    state, factors = controller.start(config), []
    for step in range(400):
        kl = plant.kl(step, state.factor) if step % (8 if step < 96 else 32) == 0 else None
        state, decision = controller.step(config, state, Signals(kl=kl))
        factors.append(decision.factor)
    assert factors[100:] == pytest.approx([0.2] * 300, rel=0.02)


def test_a_kl_of_exactly_zero_is_no_evidence() -> None:
    """GRPO with one iteration reports an in-loop KL of 0 at every step: that must not shorten the warmup."""
    assert [d.factor for d in decide(Config(10), [Signals(kl=0.0)] * 5)] == [0.2, 0.3, 0.4, 0.5, 0.6]


def test_the_users_schedule_shapes_the_kl_budget() -> None:
    """At half the schedule the same ceiling means a quarter of the KL, so the factor does not move."""
    config = steady(10)
    state = controller.start(config)
    for step in range(100):
        scale = 1.0 if step < 50 else 0.5
        kl = 0.01 * (state.factor * scale / 0.3) ** 2
        state, decision = controller.step(config, state, Signals(kl=kl, lr_scale=scale))
    assert decision.factor == pytest.approx(0.3, rel=1e-6)


@pytest.mark.parametrize("heard", [{}, {"kl": 1e-3}, {"kl": 0.0}, {"kl": math.nan}, {"grad_norm": 1.0}])
def test_a_schedule_at_zero_is_no_evidence_and_uses_up_no_warmup(heard: dict[str, float]) -> None:
    frozen = [Signals(lr_scale=0.0, **heard)] * 30
    held = decide(Config(10), frozen)
    assert {decision.factor for decision in held} == {0.1}
    assert "no update: holding at 0.1" in held[0].reasons or "kl is nan: holding at 0.1" in held[0].reasons
    thawed = decide(Config(10), [*frozen, *[Signals()] * 9])
    assert [decision.factor for decision in thawed[30:]] == pytest.approx([n / 10 for n in range(2, 11)])


def test_a_schedule_that_comes_to_zero_holds_what_is_known() -> None:
    config = steady(10)
    known = decide(config, [Signals(kl=0.04)] * 5)[-1]
    after = decide(config, [*[Signals(kl=0.04)] * 5, *[Signals(lr_scale=0.0)] * 50])[-1]
    assert (after.factor, after.ceiling) == (known.factor, known.ceiling)


def test_guard_hands_over_or_goes_on_guarding() -> None:
    """The run bears everything for 20 steps, then only a tenth."""
    plant = lambda: Plant(bears=lambda step: 10.0 if step < 20 else 0.1)  # noqa: E731
    guarded = factors(steady(10), plant(), 80)
    handed_over = list(run(steady(10, guard=False), plant(), 80))
    assert guarded[15] == 1.0
    assert guarded[-1] == pytest.approx(0.1, rel=0.05)
    assert {d.factor for d in handed_over[10:]} == {1.0}
    assert {d.phase for d in handed_over[10:]} == {"done"}


def test_a_drop_of_the_score_cuts_without_any_kl_and_repeats_while_it_lasts() -> None:
    scores = [0.8 + 0.01 * (-1) ** i for i in range(30)] + [0.2 + 0.01 * (-1) ** i for i in range(30)]
    decisions = decide(Config(10), [Signals(task_reward=s) for s in scores])
    assert all(d.factor == 1.0 for d in decisions[10:30])
    cuts = [i for i in range(1, 60) if decisions[i].factor < 0.6 * decisions[i - 1].factor]
    assert 30 <= cuts[0] <= 33
    assert len(cuts) >= 3
    assert "score_drop" in [alarm.name for alarm in decisions[cuts[0]].alarms]
    assert "task reward is at" in decisions[cuts[0]].reasons[0]


def test_where_only_the_score_tells_the_ramp_is_exponential_and_as_long_as_the_nominal_one() -> None:
    """From 1 / 16 by a factor of 2 every 15 / 4 steps."""
    decisions = decide(Config(16), [Signals(task_reward=0.5)] * 20)
    assert [d.factor for d in decisions] == pytest.approx([min(2 ** (4 * (d.step / 15 - 1)), 1.0) for d in decisions])
    assert {d.expected_end for d in decisions} == {15}


def test_what_a_drop_has_cut_is_made_good_in_a_nominal_warmup_from_when_it_is_over() -> None:
    scores = [0.8] * 30 + [0.2] * 4 + [0.8] * 60
    decisions = decide(Config(10), [Signals(task_reward=s + 0.01 * (-1) ** i) for i, s in enumerate(scores)])
    cut = next(i for i in range(20, 95) if decisions[i].factor < 1.0)
    over = next(i for i in range(cut, 95) if not decisions[i].alarms)
    assert {d.factor for d in decisions[cut:over]} == {0.5}
    assert decisions[over + 4].factor == pytest.approx(0.5 * 2**0.5)
    assert (decisions[over + 4].phase, decisions[over + 4].expected_end) == ("holding", 9)
    assert "score" in decisions[over + 4].reasons[0]
    assert decisions[over + 9].factor == 1.0


def test_on_the_way_up_a_cut_is_made_good_to_where_the_score_dropped_and_then_the_ramp_goes_on() -> None:
    scores = [0.8] * 20 + [0.2] * 12 + [0.8] * 240
    decisions = decide(Config(100), [Signals(task_reward=s + 0.01 * (-1) ** i) for i, s in enumerate(scores)])
    cut = next(i for i in range(20, 95) if decisions[i].factor < decisions[i - 1].factor)
    assert decisions[cut].expected_end is None
    over = next(i for i in range(cut, 232) if not decisions[i].alarms)
    fell, left = decisions[cut - 1].factor, decisions[over - 1].factor
    assert left == pytest.approx(fell / 4, rel=0.1)  # cut again after eight steps
    back = next(i for i in range(over, 272) if decisions[i].factor >= fell)
    assert back - over == pytest.approx(200, abs=15)


def test_a_score_that_stays_down_is_the_new_level_in_the_end_and_the_lr_comes_back() -> None:
    scores = [0.8] * 20 + [0.2] * 10_000 + [0.8] * 300
    decisions = decide(Config(20), [Signals(task_reward=s + 0.01 * (-1) ** i) for i, s in enumerate(scores)])
    assert min(d.factor for d in decisions) == Config(20).floor
    assert decisions[-1].factor == 1.0


def test_an_outlying_grad_norm_slows_the_nominal_pace() -> None:
    stream = [Signals(grad_norm=1.0 + 0.01 * (i % 3)) for i in range(20)]
    calm = decide(Config(100), [*stream, Signals(grad_norm=1.0)])[-1]
    wild = decide(Config(100), [*stream, Signals(grad_norm=50.0)])[-1]
    assert calm.factor == 22 / 100
    assert wild.factor == 21 / 100
    assert "grad norm" in wild.reasons[0]


@pytest.mark.parametrize(("on_gaming", "rises", "stops"), [("hold", False, False), ("warn", True, False),
                                                           ("stop", False, True)])  # fmt: skip
def test_gaming_holds_warns_or_stops(on_gaming: str, rises: bool, stops: bool) -> None:
    config = Config(100, on_gaming=on_gaming)  # type: ignore[arg-type]
    stream = [Signals(kl_reward=1.0 + 0.1 * (i % 2), task_reward=0.3) for i in range(12)]
    decisions = decide(config, stream)
    assert (decisions[-1].factor > decisions[-2].factor) is rises
    assert decisions[-1].stop is stops
    assert decisions[-1].alarms[0].name == "kl_gaming"
    assert "response mask" in decisions[-1].alarms[0].message


def test_reasons_read_as_a_person_would_write_them() -> None:
    config = Config(20)
    state = State(factor=0.5, clock=10.0, law={"gain": math.log(0.04), "count": 9})
    _, decision = controller.step(config, state, Signals(kl=0.031))
    assert decision.reasons == ("kl 0.031 is 3.1 x the target 0.01: backing off to 0.43",)
    assert decision.phase == "backing_off"


def test_half_of_a_small_way_to_the_ceiling_is_gone_and_a_large_one_whole() -> None:
    """Within a factor e, a half in logs: the root of the ratio. A probe's KL counts for the steps since the last, one
    of many updates for each eight."""
    config = Config(20)

    def moved(ceiling: float, source: str = "post_update", **memory: float) -> float:
        state = State(factor=0.4, clock=8.0, step=1, law={"gain": math.log(0.01 / ceiling**2), "count": 9, **memory})
        signals = Signals(kl=0.01 * (0.4 / ceiling) ** 2, kl_source=source)
        return controller.step(config, state, signals)[1].factor / 0.4

    assert moved(0.4 / 1.44) == pytest.approx(1 / 1.2)
    assert moved(0.4 * 1.44) == pytest.approx(1.2)
    assert moved(0.4 / 3.0) == pytest.approx(1 / 3.0)
    assert moved(0.4 / 1.44, "probe", silent=1.0) == pytest.approx(1.44**-0.75)
    assert moved(0.4 / 1.44, "post_update:4x4", met=1.0) == pytest.approx(1.44**-0.75)


# The feedback law on the plant, as numbers: 16 seeds, noise of ln KL .7 as measured in small PPO runs.


def test_rise_time_and_overshoot() -> None:
    rises, overshoots = [], []
    for seed in range(16):
        path = factors(steady(100), Plant(bears=0.3, noise=0.7, seed=seed), 60)
        rises.append(next(i for i, f in enumerate(path) if f >= 0.5 * 0.3) + 1)
        overshoots.append(max(path) / 0.3)
    assert statistics.mean(rises) < 6
    assert max(rises) <= 15
    assert max(overshoots) < 1.6


def test_settles_below_what_the_run_bears_with_little_jitter() -> None:
    for seed in range(16):
        path = factors(steady(100), Plant(bears=0.3, noise=0.7, seed=seed), 300)[50:]
        logs = [math.log(f / 0.3) for f in path]
        jitter = statistics.pstdev([b - a for a, b in itertools.pairwise(logs)])
        assert -0.6 < statistics.mean(logs) < 0.0  # bad news counts more, so it stays on the safe side
        assert jitter < 0.07


def test_follows_a_jump_down_within_a_few_steps_and_back_up_slowly() -> None:
    plant = Plant(bears=lambda step: 0.02 if 100 <= step < 200 else 0.4, noise=0.3)
    path = factors(steady(100), plant, 300)
    down = next(i for i in range(100, 200) if path[i] < 0.03) - 100
    up = next(i for i in range(200, 300) if path[i] > 0.25) - 200
    assert down <= 5
    assert 5 <= up <= 40


def test_missing_values_change_little() -> None:
    full = factors(Config(100), Plant(bears=0.3, noise=0.5, seed=3), 200)
    half = factors(Config(100), Plant(bears=0.3, noise=0.5, seed=3, missing=0.5), 200)
    assert statistics.mean(half[50:]) == pytest.approx(statistics.mean(full[50:]), rel=0.2)


def test_a_peak_a_hundred_times_beyond_is_brought_to_the_same_lr() -> None:
    """All lrs times a constant: the factor is divided by it, the lr stays."""
    lrs = []
    for peak in (1.0, 100.0):
        path = factors(Config(400), Plant(bears=0.5 / peak, noise=0.5, seed=1), 300)
        lrs.append(statistics.mean(path[100:]) * peak)
    assert lrs[1] == pytest.approx(lrs[0], rel=0.05)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"warmup_steps": 0}, "warmup_steps=0"),
        ({"warmup_steps": -3}, "warmup_steps=-3"),
        ({"warmup_steps": 1.5}, "warmup_steps=1.5"),
        ({"warmup_steps": True}, "warmup_steps=True"),
        ({"warmup_steps": 10, "min_warmup_steps": 20}, "min_warmup_steps=20 exceeds warmup_steps=10"),
        ({"warmup_steps": 10, "min_warmup_steps": 0}, "min_warmup_steps=0"),
        ({"warmup_steps": 10, "target_kl": -1.0}, "target_kl=-1.0"),
        ({"warmup_steps": 10, "target_kl": math.nan}, "target_kl=nan"),
        ({"warmup_steps": 10, "target_kl": 1e-315}, "target_kl=1e-315"),
        ({"warmup_steps": 10, "min_target_kl": 0.02}, "min_target_kl=0.02 must be positive and at most target_kl=0.01"),
        ({"warmup_steps": 10, "min_target_kl": 0.0}, "min_target_kl=0.0"),
        ({"warmup_steps": 10, "target_kl": "low"}, "target_kl='low' must be a number"),
        ({"warmup_steps": 10, "min_factor": 0.0}, "min_factor=0.0"),
        ({"warmup_steps": 10, "on_gaming": "shout"}, "on_gaming='shout'"),
        ({"warmup_steps": 10, "law": "pid"}, "law='pid'"),
        ({"warmup_steps": 10, "guard": "false"}, "guard='false' must be True or False"),
    ],
)
def test_bad_settings_are_quoted(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**settings)  # type: ignore[arg-type]


def test_numbers_of_numpy_become_pythons() -> None:
    config = Config(np.int64(10), target_kl=np.float64(0.01))  # type: ignore[arg-type]
    assert config == Config(10)
    assert type(config.warmup_steps) is int
    assert type(config.target_kl) is float


def test_importing_the_controller_imports_no_torch() -> None:
    code = "import adaptive_warmup.controller, adaptive_warmup.regulator, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_warmup_what_was_cut_comes_back() -> None:
    high = [Signals(kl=0.1)] * 3  # ten times the target: the factor falls
    held = decide(Config(1), [*high, *[Signals(kl=1e-6)] * 100])
    assert min(d.factor for d in held) < 0.5
    assert held[-1].factor == 1.0
    scores = [0.8] * 20 + [0.2] * 4 + [0.8] * 100
    blind = decide(Config(1), [Signals(task_reward=s + 0.01 * (-1) ** i) for i, s in enumerate(scores)])
    assert min(d.factor for d in blind) <= 0.5
    assert blind[-1].factor == 1.0


def test_a_drop_is_cut_for_on_what_is_reported_and_over_when_nothing_is() -> None:
    """One cut to a half where it shows; the silence after it is no further drop, and after 16 steps none at all."""
    scores = [0.8 + 0.01 * (-1) ** i for i in range(30)]
    falling = decide(Config(20), [Signals(task_reward=s) for s in [*scores, *[0.2] * 3]])
    cuts = [b.factor / a.factor for a, b in itertools.pairwise(falling)][-3:]
    silent = decide(Config(20), [*(Signals(task_reward=s) for s in [*scores, *[0.2] * 3]), *[Signals()] * 60])
    after = silent[len(falling) :]
    assert sorted(cuts)[0] == pytest.approx(0.5, rel=0.01)
    assert min(d.factor for d in after) == falling[-1].factor
    assert [bool(d.alarms) for d in after] == [True] * 16 + [False] * 44


@pytest.mark.parametrize(("lr_scale", "steps"), [(1.0, 20), (0.0, 100)])
def test_steps_without_an_update_use_up_neither_the_warmup_nor_the_ceiling(lr_scale: float, steps: int) -> None:
    """KL = 0 where it was not before: skipped updates, at most a nominal warmup of them; a schedule that is at zero."""
    stream = [Signals(kl=0.04 * (1 / 20) ** 2 * 100), *[Signals(kl=0.0, lr_scale=lr_scale)] * 100]
    found = decide(Config(20), stream)
    assert {d.factor for d in found[: steps + 1]} == {found[0].factor}
    assert found[0].ceiling == found[steps].ceiling is not None
    assert "no update" in found[steps].reasons[0]
    assert (found[-1].factor > 2.0 * found[0].factor) == (steps < 100)
    constant = decide(Config(20), [Signals(kl=0.0)] * 30)  # one that was never anything else says nothing
    assert constant[-1].factor == 1.0


@pytest.mark.parametrize("source", ["post_update", "training_probe", "clip_fraction"])
def test_a_kl_that_rounds_to_nothing_does_not_hold_the_warmup(source: str) -> None:
    """Of a small lr a probe reads 0 at every other step, and a clip fraction far more often: they were updated."""
    small = 1e-6 if source != "clip_fraction" else 1 / 512
    found = decide(Config(20), [Signals(kl=small if i % 4 == 0 else 0.0, kl_source=source) for i in range(40)])
    assert found[19].factor == 1.0 or source == "clip_fraction"  # one that says so much at a low lr has a ceiling
    assert not any("no update" in d.reasons[0] for d in found)


def test_a_drop_that_is_reported_seldom_is_cut_for_once_all_the_same() -> None:
    """Every 20 steps; with a KL that bears the peak one cut, without one again every 8 reports of it."""

    def cuts(**kl: float) -> int:
        stream = []
        for t in range(1200):
            score = (0.6 if t < 600 else 0.4) * min(t / 400, 1.0) + 0.002 * (-1) ** (t // 20)
            stream.append(Signals(task_reward=score if t % 20 == 0 else None, **kl))
        found = decide(Config(100), stream)
        return sum("down from" in d.reasons[0] and "backing off" in d.reasons[0] for d in found)

    assert cuts(kl=1e-5) == 1
    assert cuts() == 4  # at 30 reports after the drop: the 1st, 9th, 17th and 25th


def test_after_a_kl_that_is_far_beyond_the_target_nothing_rises_whatever_the_ones_before_it_said() -> None:
    found = decide(Config(20), [Signals(kl=1e-6), Signals(kl=5.0), Signals(kl=1e-6)])
    assert [d.factor for d in found] == [pytest.approx(0.05 * math.sqrt(20)), found[0].factor, 1.0]
    assert "kl 5 is 5e+02 x the target 0.01 (smoothed 0.0148 x): holding at 0.22" in found[1].reasons
