from __future__ import annotations

import math

import pytest

from adaptive_warmup.ppo import PPOConfig


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: give a count of 1 or more"),
        ({"batch_size": 10, "mini_batches": 4}, "mini_batches=4: give a divisor of batch_size=10"),
        ({"epochs": 0}, "epochs=0: give a count of 1 or more"),
        ({"learning_rate": -1e-3}, "learning_rate=-0.001: give a finite number, 0 or more"),
        ({"value_learning_rate": math.nan}, "value_learning_rate=nan: give a finite number, 0 or more"),
        ({"clip_range": 0.0}, "clip_range=0.0: give a positive, finite number"),
        ({"temperature": math.inf}, "temperature=inf: give a positive, finite number"),
        ({"gamma": 1.1}, "gamma=1.1: give a number from 0 to 1"),
        ({"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\): give two numbers"),
        ({"kl_in": "both"}, 'kl_in=\'both\': give "reward" or "loss"'),
    ],
)
def test_a_bad_setting_is_quoted_with_its_remedy(setting, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**setting)


def test_search_r1s_settings_are_accepted():
    config = PPOConfig(batch_size=512, learning_rate=1e-6, value_learning_rate=1e-5, kl_coef=0.001, entropy_coef=0.001)
    assert (config.clip_range, config.value_clip_range, config.gamma, config.lam) == (0.2, 0.5, 1.0, 1.0)
