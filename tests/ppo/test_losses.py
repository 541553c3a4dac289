from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptive_warmup.ppo import clip_fraction, entropy, k1, k2, k3, masked_mean, policy_loss, value_loss

logits = st.lists(st.floats(-3, 3), min_size=4, max_size=4).map(lambda xs: torch.tensor(xs, dtype=torch.float64))


@given(logits, logits)
def test_k1_and_k3_are_unbiased_over_the_policys_own_tokens(mine, other):
    p, q = mine.log_softmax(-1), other.log_softmax(-1)
    exact = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum")
    assert torch.isclose((p.exp() * k1(p, q)).sum(), exact, atol=1e-12)
    assert torch.isclose((p.exp() * k3(p, q)).sum(), exact, atol=1e-12)
    assert (k2(p, q) >= 0).all()
    assert (k3(p, q) >= -1e-15).all()


def test_estimators_by_hand():
    policy, other = torch.tensor(0.0), torch.tensor(math.log(2.0))  # r = 2
    assert k1(policy, other).item() == pytest.approx(-math.log(2))
    assert k2(policy, other).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert k3(policy, other).item() == pytest.approx(1 - math.log(2))


def test_k3_keeps_its_digits_near_zero():
    assert k3(torch.tensor(0.0), torch.tensor(1e-3)).item() == pytest.approx(5.0017e-7, rel=1e-3)


def test_masked_mean():
    mask = torch.tensor([[True, False], [True, False]])
    assert masked_mean(torch.tensor([[1.0, math.nan], [4.0, 7.0]]), mask).item() == 2.5
    assert masked_mean(torch.ones(2), torch.zeros(2, dtype=torch.bool)).item() == 0.0


def test_clipped_surrogate_by_hand():
    # Ratios 1.5 and 0.5. With advantage +1: min(1.5, 1.2) = 1.2 and min(.5, .8) = .5. With -1: -1.5 and -.8.
    now = torch.tensor([[1.5, 0.5, 1.5, 0.5]]).log()
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    inputs = now, torch.zeros(1, 4), advantages, torch.ones(1, 4, dtype=torch.bool), 0.2
    assert policy_loss(*inputs).item() == pytest.approx(-(1.2 + 0.5 - 1.5 - 0.8) / 4)
    assert clip_fraction(*inputs).item() == 0.5


def test_no_gradient_where_the_surrogate_is_clipped():
    now = torch.tensor([[1.5, 0.5]]).log().requires_grad_()
    policy_loss(now, torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), 0.2).backward()
    assert now.grad is not None
    assert now.grad[0].tolist() == pytest.approx([0.0, -0.25])


def test_value_loss_by_hand():
    # Old value 0, range .5. Value 2 to return 1: the worse of 1 and (.5 - 1)^2; value 2 to return 3: 1 and 2.5^2.
    values, returns = torch.tensor([[2.0, 2.0]]), torch.tensor([[1.0, 3.0]])
    loss = value_loss(values, torch.zeros(1, 2), returns, torch.ones(1, 2, dtype=torch.bool), 0.5)
    assert loss.item() == pytest.approx((1.0 + 6.25) / 2 / 2)


def test_entropy():
    assert entropy(torch.zeros(3, 8)).tolist() == pytest.approx([math.log(8)] * 3)
    assert entropy(torch.tensor([100.0, 0.0])).item() == pytest.approx(0.0, abs=1e-6)


def test_vmap_over_stacked_runs():
    draw = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 4, 5, 6, generator=draw)
    mask = torch.rand(4, 5, 6, generator=draw) < 0.7
    for loss, inputs in ((policy_loss, (a, b, c)), (clip_fraction, (a, b, c)), (value_loss, (a, b, c))):
        stacked = torch.func.vmap(loss, in_dims=(0, 0, 0, 0, None))(*inputs, mask, 0.2)
        single = [loss(*(x[i] for x in inputs), mask[i], 0.2) for i in range(4)]
        torch.testing.assert_close(stacked, torch.stack(single))
    torch.testing.assert_close(torch.func.vmap(entropy)(a), entropy(a))


def test_what_overflows_off_the_mask_is_in_no_gradient():
    """exp(200) is infinite: at a token that nobody sampled it must not turn the other's gradient into NaN."""
    now, old = torch.tensor([[0.5, 200.0]], requires_grad=True), torch.zeros(1, 2)
    mask, advantages = torch.tensor([[True, False]]), torch.ones(1, 2)
    policy_loss(now, old, advantages, mask, clip_range=1.0).backward()
    assert now.grad.tolist() == [[pytest.approx(-math.exp(0.5)), 0.0]]
    assert clip_fraction(now, old, advantages, mask, clip_range=1.0) == 0.0
