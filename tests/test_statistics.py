"""The online estimators, on numbers that can be checked by hand and on seeded streams."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import pytest
from scipy import stats

from adaptive_warmup.statistics import Excess, Gain, Level, LogScale, critical_t, slope_t


def test_gain_believes_bad_news_by_half_and_good_news_by_less() -> None:
    gain = Gain().update(0.01, 1.0)
    assert gain.log == pytest.approx(math.log(0.01))
    assert gain.update(0.01 * math.e, 1.0).log == pytest.approx(math.log(0.01) + 0.5)
    assert gain.update(0.01 / math.e, 1.0).log == pytest.approx(math.log(0.01) - 0.15)


def test_gain_is_the_same_at_every_lr_of_a_quadratic_run() -> None:
    gain = Gain()
    for factor in (0.01, 0.1, 1.0):
        gain = gain.update(4.0 * factor**2, factor)
    assert gain.log == pytest.approx(math.log(4.0))
    assert gain.factor_for(0.01) == pytest.approx(0.05)


def test_the_factor_of_an_absurd_gain_is_a_number_above_zero() -> None:
    for log in (-1e4, 1e4):
        assert 0.0 < Gain(log, 1).factor_for(0.01) < math.inf


def test_one_absurd_kl_moves_the_gain_by_a_bounded_amount() -> None:
    assert Gain(0.0, 5).update(1e90, 1.0).log == 2.0


def test_good_news_counts_for_the_steps_that_it_speaks_for() -> None:
    one_by_one = Gain(0.0, 5)
    for _ in range(4):
        one_by_one = one_by_one.update(math.exp(-1.0), 1.0)
    assert Gain(0.0, 5).update(math.exp(-1.0), 1.0, worth=4).log == pytest.approx(one_by_one.log)
    assert Gain(0.0, 5).update(math.exp(-1.0), 1.0, worth=10**6).log == pytest.approx(0.85**8 - 1.0)
    assert Gain(0.0, 5).update(math.e, 1.0, worth=4).log == 0.5  # bad news is believed by half at once


def test_level_of_a_constant_has_no_noise_and_no_drop() -> None:
    level = Level()
    for _ in range(50):
        level = level.update(0.3)
    assert (level.level, level.variance, level.drop) == (0.3, 0.0, 0.0)


def test_the_noise_of_a_level_is_that_of_the_series_and_not_its_trend() -> None:
    draws, level = random.Random(0), Level()
    for step in range(2000):
        level = level.update(0.01 * step + draws.gauss(0.0, 1.0))
    assert math.sqrt(level.variance) == pytest.approx(1.0, rel=0.3)


def test_a_drop_is_found_where_it_happens_and_rarely_elsewhere() -> None:
    false_alarms, delays = 0, []
    for seed in range(50):
        draws, level = random.Random(seed), Level()
        for _ in range(200):
            level = level.update(draws.gauss(0.8, 0.05))
            false_alarms += level.drop > 4.0
        delays.append(0)
        while level.drop <= 4.0:
            level = level.update(draws.gauss(0.5, 0.05))
            delays[-1] += 1
    assert false_alarms <= 20  # of 10 000 steps
    assert max(delays) <= 5


def test_a_glitch_counts_as_little_more_than_noise() -> None:
    draws, level = random.Random(1), Level()
    for _ in range(100):
        level = level.update(draws.gauss(0.8, 0.05))
    for _ in range(3):
        level = level.update(800.0)
    for _ in range(40):
        level = level.update(draws.gauss(0.8, 0.05))
    assert level.level == pytest.approx(0.8, abs=0.1)


def test_a_value_counts_as_five_deviations_out_at_most() -> None:
    """Of 0, 1, 0, 1, ... the differences of 1 have a variance of a half; a level takes a quarter of a value in."""
    level = Level()
    for step in range(200):
        level = level.update(step % 2)
    assert level.variance == pytest.approx(0.5)
    assert level.update(1e9).level - level.level == pytest.approx(0.25 * 5 * math.sqrt(0.5))


@pytest.mark.parametrize(("rise", "noise"), [(0.01, 0.003), (0.01, 0.008), (0.005, 0.003), (0.02, 0.01), (0.05, 0.001)])
def test_the_level_keeps_up_with_a_series_that_rises_by_more_than_its_noise(rise: float, noise: float) -> None:
    draws, level = random.Random(0), Level()
    for score in [min(rise * step, 1.0) for step in range(round(1.0 / rise) + 30)]:
        level = level.update(score + draws.gauss(0.0, noise))
    assert level.level == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("fall", "noise", "within"), [(0.3, 0.001, 17), (0.01, 0.001, 11), (0.01, 0.03, 10)])
def test_a_fall_is_found_also_where_it_is_far_more_than_the_noise(fall: float, noise: float, within: int) -> None:
    draws, level = random.Random(0), Level()
    for step in range(200):
        level = level.update(min(1.0, 0.3 + 0.005 * step) + draws.gauss(0.0, noise))
    for step in range(within):
        level = level.update(max(0.0, 1.0 - fall * (step + 1)) + draws.gauss(0.0, noise))
    assert level.drop > 4.0
    assert level.lost > 0.1


def test_a_drop_is_told_from_the_ninth_value_on() -> None:
    level = Level()
    for _ in range(7):
        level = level.update(1.0)
    assert level.update(0.5).drop == 0.0
    assert level.update(1.0).update(0.5).drop > 1.0


def test_a_level_is_less_sure_where_values_hang_together() -> None:
    level = Level()
    for step in range(400):
        level = level.update((0.0, 1.0, 2.0, 1.0)[step % 4])  # turns at each second step: as the sum of many draws
    assert level.turns == pytest.approx(0.5, abs=0.01)
    assert level.stretch == pytest.approx((1 + 0.75 * 0.85) / (1 - 0.75 * 0.85) / 0.15)  # rho is at most .85
    assert level.error**2 == pytest.approx(level.stretch * (level.variance + level.noise) / 7)
    draws, independent = random.Random(0), Level()
    for _ in range(400):
        independent = independent.update(draws.random() ** 3)
    assert independent.turns == pytest.approx(2 / 3, abs=0.1)
    assert independent.stretch == 1.0


def test_that_values_hang_together_is_believed_late_and_not_on_a_fall() -> None:
    level, stretches = Level(), []
    for step in range(300):
        level = level.update((0.0, 1.0, 2.0, 1.0)[step % 4])
        stretches.append(level.stretch)
    assert set(stretches[:100]) == {1.0}
    assert stretches[-1] > 30.0
    draws, falling = random.Random(0), Level()
    for step in range(300):
        falling = falling.update(draws.gauss(min(0.0, 150 - step), 1.0))
    assert falling.turns < 0.5  # a fall has no turns
    assert falling.stretch == 1.0


def test_log_scale_of_known_numbers() -> None:
    scale = LogScale()
    for x in (1.0, math.e**2):
        scale = scale.update(x)
    assert scale.mean == pytest.approx(1.0)
    assert scale.variance == pytest.approx(1.0)
    assert scale.z(1e6) == 0.0  # not settled


def test_a_change_of_a_tenth_is_no_outlier_of_norms_that_hardly_vary() -> None:
    scale = LogScale()
    for _ in range(20):
        scale = scale.update(3.0)
    assert scale.z(3.0 * math.exp(0.1)) == pytest.approx(1.0)
    assert scale.at(1.0) == pytest.approx(3.0 * math.exp(0.1))


def test_log_scale_finds_an_outlier() -> None:
    draws, scale = random.Random(0), LogScale()
    for _ in range(100):
        scale = scale.update(math.exp(draws.gauss(0.0, 0.2)))
    assert abs(scale.z(1.0)) < 1.0
    assert scale.z(10.0) == pytest.approx(math.log(10.0) / 0.2, rel=0.3)


def summed(values: Iterable[float]) -> list[float]:
    excess, totals = Excess(), []
    for value in values:
        excess = excess.update(value)
        totals.append(excess.total)
    return totals


def test_excess_adds_up_what_lies_above_zero_by_more_than_half_a_deviation() -> None:
    """Differences of 2 have a variance of 2, in which +1 is 1 / sqrt(2), less the slack of .5, and -1 more than all."""
    values = [1.0, -1.0] * 4 + [1.0]
    assert summed(values) == pytest.approx([0.0, 0.0] + [2**-0.5 - 0.5, 0.0] * 3 + [2**-0.5 - 0.5])
    assert summed([-0.02, -0.01] * 5 + [50.0])[-1] == 4.5  # however far: three such values at least
    assert summed([0.5] * 12) == [0.0, 0.0, 0.5, 1.5, 3.0, 5.0, 7.5, 10.5, 14.0, 18.0, 18.0, 18.0]  # half a sd a value
    assert summed([0.0] * 12 + [-0.5] * 12) == [0.0] * 24


def test_excess_of_noise_about_zero_is_rarely_large_and_forgotten_soon() -> None:
    """Once in a million steps it passes 12 where the noise is known; where it has yet to be learned, in some runs."""
    draws = random.Random(0)
    long = [max(summed(draws.gauss(0.0, 1.0) for _ in range(200))) > 12.0 for _ in range(500)]
    assert sum(long) <= 10
    after = summed([5.0] * 14 + [draws.gauss(-1.0, 1.0) for _ in range(12)])
    assert max(after) == 18.0
    assert after[-1] < 12.0


def test_t_statistics_agree_with_scipy() -> None:
    window = (0.3, -0.1, 0.4, 0.2, 0.9, 0.5, 0.1, 0.8)
    fit = stats.linregress(range(8), window)
    assert slope_t(window) == pytest.approx(fit.slope / fit.stderr)
    assert critical_t(0.001, 7) == pytest.approx(stats.t.isf(0.001, 7))


def test_t_statistics_without_any_noise() -> None:
    assert slope_t((0.5,) * 8) == 0.0
    assert slope_t((0.0, 1.0, 2.0, 3.0)) > 1e6
