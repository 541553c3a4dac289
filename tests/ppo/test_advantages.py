from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptive_warmup.ppo import gae, kl_penalised_rewards, whiten
from adaptive_warmup.ppo.advantages import last_response_token

T, F = True, False


def test_last_response_token():
    mask = torch.tensor([[T, F, T, F], [T, T, T, T], [T, F, F, F]])
    assert last_response_token(mask).tolist() == [[F, F, T, F], [F, F, F, T], [T, F, F, F]]


def test_kl_reward_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, -3.0, 0.0]])
    reference = torch.tensor([[-1.5, -9.0, -2.0, -5.0]])
    rewards = kl_penalised_rewards(torch.tensor([2.0]), logprobs, reference, torch.tensor([[T, F, T, F]]), 0.1)
    assert rewards[0].tolist() == pytest.approx([-0.05, 0.0, 2.0 + 0.1, 0.0])


def test_gae_by_hand_skips_inserted_tokens():
    mask = torch.tensor([[T, F, T, F]])
    rewards, values = torch.tensor([[0.0, 5.0, 1.0, 5.0]]), torch.tensor([[0.5, 9.0, 0.25, 9.0]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    # t = 2: 1 - .25 = .75. t = 0: delta = .5 * .25 - .5 = -.375, and + .5 * .5 * .75.
    assert advantages[0].tolist() == pytest.approx([-0.1875, 0.0, 0.75, 0.0])
    assert returns[0].tolist() == pytest.approx([0.3125, 0.0, 1.0, 0.0])


rows = st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.booleans()), min_size=1, max_size=8)


@given(rows, st.floats(0, 1), st.floats(0, 1))
def test_inserted_tokens_are_as_if_absent(row, gamma, lam):
    rewards, values, mask = (
        torch.tensor([column], dtype=dtype)
        for column, dtype in zip(zip(*row, strict=True), (torch.float64, torch.float64, torch.bool), strict=True)
    )
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    kept = mask[0]
    dense = gae(rewards[:, kept], values[:, kept], mask[:, kept], gamma, lam) if kept.any() else None
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()
    if dense is not None:
        torch.testing.assert_close(advantages[:, kept], dense[0])
        torch.testing.assert_close(returns[:, kept], dense[1])


@given(rows)
def test_without_discount_the_return_is_the_sum_of_rewards_to_come(row):
    rewards = torch.tensor([[r for r, _, _ in row]], dtype=torch.float64)
    values = torch.tensor([[v for _, v, _ in row]], dtype=torch.float64)
    _, returns = gae(rewards, values, torch.ones_like(rewards, dtype=torch.bool), 1.0, 1.0)
    torch.testing.assert_close(returns, rewards.flip(-1).cumsum(-1).flip(-1))


def test_whiten():
    values, mask = torch.tensor([[1.0, 2.0, 99.0], [3.0, 4.0, -99.0]]), torch.tensor([[T, T, F], [T, T, F]])
    white = whiten(values, mask)
    assert white[~mask].tolist() == [0.0, 0.0]
    assert white[mask].mean().item() == pytest.approx(0.0, abs=1e-6)
    assert white[mask].var(correction=0).item() == pytest.approx(1.0, rel=1e-5)
    assert whiten(torch.full((2, 3), 7.0), mask).abs().max().item() == 0.0


def test_vmap_over_stacked_runs():
    draw = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 4, 5, 6, generator=draw)
    scores, mask = torch.randn(4, 5, generator=draw), torch.rand(4, 5, 6, generator=draw) < 0.7
    stacked = torch.func.vmap(gae, in_dims=(0, 0, 0, None, None))(rewards, values, mask, 0.9, 0.8)
    for i, pair in enumerate(zip(*stacked, strict=True)):
        torch.testing.assert_close(pair, gae(rewards[i], values[i], mask[i], 0.9, 0.8))
    penalised = torch.func.vmap(kl_penalised_rewards, in_dims=(0, 0, 0, 0, None))(scores, rewards, values, mask, 0.1)
    torch.testing.assert_close(penalised[1], kl_penalised_rewards(scores[1], rewards[1], values[1], mask[1], 0.1))
    torch.testing.assert_close(torch.func.vmap(whiten)(values, mask)[2], whiten(values[2], mask[2]))


@pytest.mark.parametrize("value", [0.0, 33.3, 333.3, -3333.0])
def test_a_constant_is_whitened_to_next_to_nothing(value):
    assert whiten(torch.full((64, 20), value), torch.ones(64, 20, dtype=torch.bool)).abs().max() < 0.03
