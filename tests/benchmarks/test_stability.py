"""The study's engine runs the product's PPO: what is stacked is what would run alone."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.experiments.stability.arms import ARMS
from benchmarks.experiments.stability.driver import Plan
from benchmarks.experiments.stability.engine import Runs
from benchmarks.experiments.stability.measures import improvement, iqm, outcome, wilson
from benchmarks.experiments.stability.network import Shape, hidden, initial, logits, stack
from benchmarks.experiments.stability.references import references, shape_of
from benchmarks.experiments.stability.rollout import Sampler
from benchmarks.experiments.stability.run import keep, run
from benchmarks.experiments.stability.sweep import Slice
from benchmarks.experiments.stability.table import load
from benchmarks.experiments.stability.worlds import EOS, World, scorer, world


def runs(task: str, seeds: list[int]) -> Runs:
    made, starts = world(task), references(task)
    return Runs(made, shape_of(made), [starts[seed % 2] for seed in seeds], seeds, epochs=1)


def test_a_run_does_not_depend_on_those_beside_it() -> None:
    together, alone = runs("chain_sum", [3, 4, 5]), runs("chain_sum", [4])
    for _ in range(3):
        both = together.step([1e-3, 3e-3, 1e-2]), alone.step([3e-3])
    for name, values in both[1].items():
        assert both[0][name][1] == pytest.approx(values[0], rel=1e-3, abs=1e-6), name
    torch.testing.assert_close(together.flat_RW[1], alone.flat_RW[0], rtol=1e-3, atol=1e-5)


def test_runs_of_one_seed_see_the_same_problems_and_noise() -> None:
    twins = runs("chain_sum", [7, 7])
    metrics = twins.step([0.0, 1e-3])
    assert metrics["task_reward"][0] == metrics["task_reward"][1]
    assert metrics["kl"][0] == pytest.approx(0.0, abs=1e-9)  # at lr 0 the policy has not moved
    assert metrics["kl"][1] > 1e-6


def test_a_broken_run_stays_by_itself() -> None:
    pair, alone = runs("chain_sum", [1, 2]), runs("chain_sum", [2])
    with torch.no_grad():
        pair.flat_RW[0] = torch.nan
    metrics = [pair.step([1e-3, 1e-3]) for _ in range(2)][-1]
    alone.step([1e-3])
    alone.step([1e-3])
    assert np.isnan(metrics["grad_norm"][0])
    torch.testing.assert_close(pair.flat_RW[1], alone.flat_RW[0], rtol=1e-3, atol=1e-5)


def test_log_probabilities_of_the_rollout_are_those_of_a_whole_forward() -> None:
    made = world("search")
    shape, weights = shape_of(made), stack(references("search"))
    sampler = Sampler(made, shape)
    rng = np.random.default_rng(0)
    episodes = sampler(weights, rng.integers(50, size=(2, 8)), rng.random((2, 8, made.length)))
    out = hidden(shape, weights, episodes.ids_RBS[..., :-1])[:, :, -made.length :]
    whole = logits(weights, out).log_softmax(-1).gather(-1, episodes.ids_RBS[..., -made.length :, None])[..., 0]
    sampled = episodes.sampled_RBT
    torch.testing.assert_close(episodes.logprobs_RBT[sampled], whole[sampled], rtol=1e-4, atol=1e-4)


def test_search_episodes_hold_the_engine_s_documents_and_only_sampled_tokens_are_the_policy_s() -> None:
    made = world("search")
    rng = np.random.default_rng(1)
    problems = rng.integers(50, size=(2, 32))
    episodes = Sampler(made, shape_of(made))(stack(references("search")), problems, rng.random((2, 32, made.length)))
    response = episodes.ids_RBS[..., -made.length :]
    inserted = episodes.written_RBT & ~episodes.sampled_RBT
    assert inserted.any()
    for run_, row in zip(*map(list, np.nonzero(inserted.any(-1).numpy())), strict=True):
        text = made.decode(response[run_, row][inserted[run_, row]].tolist())
        assert text.startswith("<information>")
    rewarded = episodes.scores_RB == 1
    assert 0.2 < rewarded.float().mean() < 0.9  # what the references are meant to be like
    run_, row = (int(part[0]) for part in np.nonzero(rewarded.numpy()))
    answer = made.problems[int(problems[run_, row])].answer
    assert answer in made.decode(response[run_, row].tolist())


def test_barred_eos_is_never_sampled_early() -> None:
    made = world("sorting_barred")
    rng = np.random.default_rng(2)
    episodes = Sampler(made, shape_of(made))(
        stack(references("sorting_barred")), rng.integers(50, size=(2, 16)), rng.random((2, 16, made.length))
    )
    assert not (episodes.ids_RBS[..., -made.length :][..., : made.barred] == EOS).any()


@pytest.mark.parametrize("name", ["search", "number_sorting", "spell_backward", "chain_sum"])
def test_words_and_back(name: str) -> None:
    made = world(name)
    rng = random.Random(0)
    for number in range(40):
        pieces = made.demonstrate(made.problems[number], rng)
        ids = [token for text, _ in pieces for token in made.encode(text)]
        assert made.decode(ids) == "".join(text for text, _ in pieces)
        assert len(ids) < made.length


def test_scores_are_the_environment_s() -> None:
    made: World = world("number_sorting")
    truth = made.problems[3].answer["answer"]
    assert scorer(made)(3, tuple(made.encode(truth))) == 1.0
    assert scorer(made)(3, tuple(made.encode(truth[:-1]))) == 0.0


def test_the_network_looks_back_only() -> None:
    shape = Shape(vocabulary=11, positions=6)
    weights = stack([initial(shape, 0), initial(shape, 1)])
    ids = torch.randint(11, (2, 3, 6), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[..., 4] = (other[..., 4] + 1) % 11
    first, second = (hidden(shape, weights, each) for each in (ids, other))
    torch.testing.assert_close(first[:, :, :4], second[:, :, :4])
    assert not torch.allclose(first[:, :, 4:], second[:, :, 4:])


def test_fixed_arms_are_the_ramps_that_they_are_called() -> None:
    driver = ARMS["ratio 0.1"](Plan(peak=1.0, steps=40))
    rates = []
    for _ in range(6):
        rates.append(driver.rate)
        driver.step({})
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_the_rule_of_torchrl_moves_by_its_factor() -> None:
    driver = ARMS["rsl_rl"](Plan(peak=1.0, steps=40))
    assert driver.rate == pytest.approx(0.1)
    driver.step({"kl": 0.001})
    assert driver.rate == pytest.approx(0.15)
    driver.step({"kl": float("nan")})
    driver.step({"kl": 0.03})
    assert driver.rate == pytest.approx(0.1)


def test_a_slice_is_kept_and_read_back(tmp_path: Path) -> None:
    part = Slice("chain_sum", "ours", (0, 1))
    keep(part, run(part, steps=45, peaks=(1e-3, 1e-1), progress=False), tmp_path)
    table = load(tmp_path)
    assert len(table.runs) == 4
    kept = table.cell("chain_sum", "ours", 1e-1)
    assert [run_.seed for run_ in kept] == [0, 1]
    assert all(run_.rates.max() < 0.05 for run_ in kept)  # lr .1 is far past what a run bears
    assert 0 < kept[0].outcome.area < 1


def test_outcomes_by_hand() -> None:
    rates = np.log(np.full(60, 0.5))
    rising = np.linspace(0.0, 1.0, 60)
    found = outcome(rising, rates, 0.9, started=0.0)
    assert found.area == pytest.approx(0.5)
    assert not found.collapsed
    assert found.drawdown == pytest.approx(0.0)
    assert (found.rate_jitter, found.mean_rate) == (pytest.approx(0.0), pytest.approx(0.5))
    fallen = outcome(np.r_[rising[:40], np.zeros(20)], rates, 0.0, started=0.0)
    assert fallen.collapsed
    assert fallen.drawdown == pytest.approx(rising[30:40].mean())
    assert found.steps_to(rising[20:30].mean() - 1e-9) == 30
    assert found.steps_to(2.0) == np.inf
    assert outcome(np.zeros(60), rates, 0.0, started=0.3).collapsed  # died before it was measured


def test_statistics_by_hand() -> None:
    assert iqm([0, 1, 2, 3, 4, 5, 6, 100]) == pytest.approx(3.5)
    assert wilson(0, 10) == pytest.approx([0.0, 0.2775], abs=1e-4)
    chance, (low, high) = improvement({"a": [2.0, 3.0], "b": [1.0, 1.0]}, {"a": [0.0, 1.0], "b": [1.0, 1.0]})
    assert chance == pytest.approx(0.75)  # always in a, even in b
    assert low == high == pytest.approx(0.75)
