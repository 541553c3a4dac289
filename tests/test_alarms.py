"""Alarms on seeded streams: what rings, when, and what stays silent."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from adaptive_warmup.alarms import Watch, drop_bound, watch
from adaptive_warmup.signals import Signals
from adaptive_warmup.statistics import slope_t


def ring(stream: list[Signals]) -> list[tuple[int, str]]:
    """(step, alarm) for each time an alarm sets in."""
    memory, before, rung = Watch(), set(), []
    for step, signals in enumerate(stream):
        memory, alarms = watch(memory, signals)
        now = {alarm.name for alarm in alarms}
        rung += [(step, name) for name in sorted(now - before)]
        before = now
    return rung


def healthy(steps: int, seed: int) -> list[Signals]:
    """The score climbs with noise; the KL reward starts at zero and falls, since the KL only grows."""
    draws = random.Random(seed)
    return [
        Signals(
            task_reward=0.3 + 0.5 * min(1.0, t / 100) + draws.gauss(0.0, 0.05),
            kl_reward=-0.01 * min(t, 50) / 50 + draws.gauss(0.0, 0.004),
            grad_norm=1.0 + draws.random(),
            loss=draws.gauss(0.0, 0.1),
        )
        for t in range(steps)
    ]


def test_healthy_runs_ring_nothing_or_nearly() -> None:
    rung = [alarm for seed in range(20) for alarm in ring(healthy(300, seed))]
    assert len(rung) <= 12  # of 6000 steps
    assert sum(name == "kl_gaming" for _, name in rung) <= 6


def test_a_kl_reward_above_zero_rings_within_a_few_steps() -> None:
    """Nine from the start, while its noise is learned; later a few, after it has come to pay."""
    draws = random.Random(0)
    early = [Signals(kl_reward=draws.gauss(0.5, 0.1), task_reward=0.5) for _ in range(14)]
    assert ring(early) == [(8, "kl_gaming")]
    late = [Signals(kl_reward=draws.gauss(-0.1 if t < 50 else 0.5, 0.1), task_reward=0.5) for t in range(60)]
    assert [step for step, _ in ring(late)] == [54]


def test_a_kl_reward_below_zero_never_rings() -> None:
    assert ring([Signals(kl_reward=-0.1 - 0.01 * (t % 3), task_reward=0.5) for t in range(100)]) == []


def test_kl_reward_rising_while_the_task_reward_falls_rings_although_below_zero() -> None:
    """The collapse of Search-R1: total reward rises, the score goes."""
    draws = random.Random(0)
    stream = [
        Signals(kl_reward=-10.0 + 0.3 * t + draws.gauss(0, 0.1), task_reward=0.9 - 0.01 * t + draws.gauss(0, 0.01))
        for t in range(20)
    ]
    assert (15, "kl_gaming") in ring(stream)


def test_both_falling_is_no_gaming_nor_is_either_alone() -> None:
    for paid, scored in [(-0.3, -0.01), (0.3, 0.01), (0.3, 0.0), (0.0, -0.01)]:
        stream = [Signals(kl_reward=-20.0 + paid * t, task_reward=0.9 + scored * t) for t in range(40)]
        assert "kl_gaming" not in [name for _, name in ring(stream)]


def test_trends_that_chance_would_make_once_in_a_hundred_windows_are_no_gaming() -> None:
    """Of 16 values with one sign after the other: the table of Student's t has 3.787 at .001 and 14 degrees."""
    for slope, rung in ((0.2, []), (0.25, ["kl_gaming"])):
        trend = tuple(slope * t + (-1) ** t for t in range(16))
        assert (slope_t(trend) > 3.787) is bool(rung)
        assert slope_t(trend) > 2.624  # at .01
        stream = [Signals(kl_reward=-9.0 + x, task_reward=9.0 - x) for x in trend]
        assert [name for _, name in ring(stream) if name == "kl_gaming"] == rung


def test_a_score_that_drops_rings_and_says_from_where() -> None:
    draws = random.Random(0)
    scores = [draws.gauss(0.8, 0.03) for _ in range(50)] + [draws.gauss(0.3, 0.03) for _ in range(10)]
    rung = ring([Signals(task_reward=score) for score in scores])
    assert [name for _, name in rung] == ["score_drop"]
    assert 50 <= rung[0][0] <= 52


def test_a_drop_is_one_from_a_tenth_of_what_had_been_gained_on() -> None:
    """However clear: from 0 to 1, and then without any noise at .92, or at .85."""
    up = [0.0] * 20 + [1.0] * 60
    for end, rung in ((0.92, []), (0.85, ["score_drop"])):
        assert [name for _, name in ring([Signals(task_reward=score) for score in up + [end] * 50])] == rung


def test_a_drop_that_has_rung_rings_until_half_of_it_is_made_good() -> None:
    """3 standard errors below its best are no drop on the way down, and still are one on the way back."""
    draws, memory, rung = random.Random(1), Watch(), False
    ways: dict[bool, set[bool]] = {False: set(), True: set()}
    for step in range(170):
        score = 0.9 - 0.004 * max(min(step - 60, 110 - step), 0) + draws.gauss(0.0, 0.02)
        memory, alarms = watch(memory, Signals(task_reward=score))
        if rung and not alarms:
            break  # made good
        rung = bool(alarms)
        if 2.5 < memory.reward.drop < 3.5:
            ways[rung].add(bool(alarms))
    assert ways == {False: {False}, True: {True}}


def test_a_broken_value_rings_for_as_long_as_it_comes() -> None:
    nan = float("nan")
    stream = [Signals(loss=x, entropy=nan) for x in (1.0, nan, nan, 1.0, nan)]
    assert ring(stream) == [(1, "non_finite"), (4, "non_finite")]  # a broken entropy decides nothing


def test_values_too_large_to_square_count_as_broken() -> None:
    assert ring([Signals(task_reward=1e300)]) == [(0, "non_finite")]


def test_a_drop_rings_first_where_the_level_passes_its_bound() -> None:
    draws, rung = random.Random(1), 0
    memory = Watch()
    for step in range(200):
        score = 0.9 - 0.004 * max(step - 60, 0) + draws.gauss(0.0, 0.02)
        before = bool(memory.drop_steps)
        memory, alarms = watch(memory, Signals(task_reward=score))
        if not before and memory.reward.settled:
            assert bool(alarms) == (memory.reward.level < drop_bound(memory.reward))
            rung += bool(alarms)
    assert rung == 1


def test_a_change_that_is_next_to_nothing_is_no_drop_and_a_new_level_is_taken_in_the_end() -> None:
    """By one rounding of float32; and by a tenth, of a score without any noise: over when the best has faded to it."""
    assert ring([Signals(task_reward=r) for r in [1.0] * 40 + [0.99999994] * 2000]) == []
    lower = [Signals(task_reward=r) for r in [1.0] * 40 + [0.9] * 500]
    assert ring(lower) == [(42, "score_drop")]
    memory = Watch()
    for signals in lower:
        memory, alarms = watch(memory, signals)
    assert not alarms  # .1 * .99^460 is a thousandth of the score


def lr_cut_by_a_tenth(kl: Callable[[float], float], noise: float, seed: int) -> list[tuple[int, str]]:
    """(step, alarm) for all that rings where the lr goes from 1 to .001, and an update's KL is `kl(lr)` and noise."""
    draws, memory, rung = random.Random(seed), Watch(), []
    for step in range(66):
        signals = Signals(kl=kl(0.9**step) * math.exp(draws.gauss(0.0, noise)))
        memory, alarms = watch(memory, signals, 0.9**step)
        rung += [(step, alarm.name) for alarm in alarms]
    return rung


def test_a_kl_that_does_not_come_down_with_the_lr_rings_and_one_that_does_never() -> None:
    """Of a sampler's log-probabilities against the trainer's, say: .02 nats of it are of no update."""
    assert lr_cut_by_a_tenth(lambda lr: 0.02 + 1e-9 * lr**2, 0.0, 0)[0] == (33, "kl_unmoved")  # .9^33 = 1 / 32.4
    for seed in range(20):
        assert "kl_unmoved" in {name for _, name in lr_cut_by_a_tenth(lambda lr: 0.02 + 0.01 * lr**2, 0.2, seed)}
        assert lr_cut_by_a_tenth(lambda lr: 0.02 * lr**2, 1.0, seed) == []
        assert lr_cut_by_a_tenth(lambda lr: 0.02 * lr, 1.0, seed) == []  # as under heavy clipping
    assert ring([Signals(kl=0.02)] * 300) == []  # at one lr it says nothing
    memory, slow = Watch(), []
    for step in range(300):  # to a 14th in 64 KLs: a run's gain may drift as fast
        memory, alarms = watch(memory, Signals(kl=0.02), 0.96**step)
        slow += alarms
    assert slow == []
    assert ring([Signals(kl=1e-7, lr_scale=1.0 - t / 300) for t in range(300)]) == []  # a schedule's end: rounding


def test_at_the_floor_a_kl_that_stays_rings_sooner() -> None:
    memory, rung = Watch(), []
    for factor in (0.01, 0.005, 0.0025, 0.0025, 0.002, 0.002):
        memory, alarms = watch(memory, Signals(kl=0.02), factor, floor=0.002)
        rung.append([alarm.name for alarm in alarms])
    assert rung == [[], [], [], [], ["kl_unmoved"], ["kl_unmoved"]]


def test_a_rolling_mean_of_a_steady_score_drops_seldom_once_it_is_known_for_one() -> None:
    """Of the last 100 answers, 16 of them new, .6 of which are right: its waves are higher than its steps tell."""
    late = 0
    for seed in range(20):
        draws, answers, scores = random.Random(seed), [1.0] * 60 + [0.0] * 40, []
        for _ in range(600):
            answers = answers[16:] + [float(draws.random() < 0.6) for _ in range(16)]
            scores.append(sum(answers) / 100)
        late += sum(step >= 200 for step, _ in ring([Signals(task_reward=score) for score in scores]))
    assert late <= 20  # of 8000 steps; by the noise of its steps alone 242


def test_a_rare_success_is_no_level_to_drop_from() -> None:
    """64 answers a step of which one in 2,000, 500 or 100 is right, for good: 20 runs of 300 steps each."""
    for rate, most in [(0.0005, 3), (0.002, 5), (0.01, 8)]:
        runs = 0
        for seed in range(20):
            draws = random.Random(seed)
            scores = [sum(draws.random() < rate for _ in range(64)) / 64 for _ in range(300)]
            runs += bool(ring([Signals(task_reward=score) for score in scores]))
        assert runs <= most


def test_a_kl_reward_that_is_next_to_nothing_pays_nobody() -> None:
    """Beside a task reward of .5, income of 1e-9 is rounding; the same income is a finding where nothing else pays."""
    draws = random.Random(0)
    tiny = [Signals(kl_reward=1e-9, task_reward=draws.gauss(0.5, 0.1)) for _ in range(100)]
    assert ring(tiny) == []
    for kl_reward, rung in ((4e-5, []), (1e-4, ["kl_gaming"])):  # a 10,000th of the task reward is 5e-5
        assert [name for _, name in ring([Signals(kl_reward=kl_reward, task_reward=0.5)] * 100)] == rung
    assert [name for _, name in ring([Signals(kl_reward=1e-9) for _ in range(100)])] == ["kl_gaming"]


def test_gaming_is_known_between_two_reports_and_not_long_after_the_last() -> None:
    """A KL reward that is reported in every second step holds the warmup in the others as well."""
    stream = [Signals(kl_reward=0.1 if t % 2 == 0 else None) for t in range(60)] + [Signals()] * 40
    memory, rings = Watch(), []
    for signals in stream:
        memory, alarms = watch(memory, signals)
        rings.append(bool(alarms))
    begin = rings.index(True)
    assert begin < 30
    assert all(rings[begin : 60 + 15])
    assert not any(rings[60 + 16 :])
