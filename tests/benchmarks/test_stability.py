"""The study's engine runs the product's PPO: what is stacked is what would run alone."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.experiments.stability.arms import ARMS
from benchmarks.experiments.stability.claims import ANY, claims
from benchmarks.experiments.stability.driver import Plan
from benchmarks.experiments.stability.edge import edge_table
from benchmarks.experiments.stability.engine import Runs
from benchmarks.experiments.stability.evidence import evidence_table, spent_table
from benchmarks.experiments.stability.measures import Blocks, improvement, interval, iqm, outcome, wilson
from benchmarks.experiments.stability.network import Shape, hidden, initial, logits, stack
from benchmarks.experiments.stability.references import references, shape_of
from benchmarks.experiments.stability.rollout import Sampler
from benchmarks.experiments.stability.run import keep, run, stacks
from benchmarks.experiments.stability.sweep import AROUND_EDGE, Slice, around_edge
from benchmarks.experiments.stability.table import Run, Table, load
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
    shape = Shape(vocabulary=11, positions=6, width=32, layers=2, heads=2)
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


@pytest.mark.parametrize(("epochs", "last"), [(1, 0.2), (4, 0.8)])
def test_untuned_warmups_count_updates_of_the_optimizer(epochs: int, last: float) -> None:
    """Two in a step, or eight: of 200 steps 400, or 1600, of the 2000 that 2 / (1 - .999) asks for."""
    for arm, first, end in (("untuned", 1e-3 * epochs, last), ("pytorch_warmup", 1e-3, 1 - np.exp(-2 * last))):
        driver, used = ARMS[arm](Plan(1.0, 200, epochs)), []
        for _ in range(200):
            used.append(driver.rate)
            driver.step({})
        assert used[0] == pytest.approx(first, rel=1e-3)
        assert used[-1] == pytest.approx(end, rel=2e-2)


def test_from_our_own_start_the_rule_begins_where_ours_does() -> None:
    plan = Plan(1.0, 200)
    assert ARMS["rsl_rl falling, low start"](plan).rate == pytest.approx(ARMS["ours"](plan).rate)


def test_the_rule_of_torchrl_moves_by_its_factor() -> None:
    driver = ARMS["rsl_rl"](Plan(peak=1.0, steps=40))
    assert driver.rate == pytest.approx(0.1)
    driver.step({"kl": 0.001})
    assert driver.rate == pytest.approx(0.15)
    driver.step({"kl": float("nan")})
    driver.step({"kl": 0.03})
    assert driver.rate == pytest.approx(0.1)


def rates(arm: str, scores: np.ndarray) -> np.ndarray:
    """The lr of each step of a run whose task reward is `scores`, at peak 1."""
    driver, used = ARMS[arm](Plan(peak=1.0, steps=len(scores))), []
    for score in scores:
        used.append(driver.rate)
        driver.step({"task_reward": float(score)})
    return np.array(used)


def test_autowu_stays_where_the_loss_was_lowest() -> None:
    noise = 0.02 * np.random.default_rng(0).normal(size=100)
    rising = rates("AutoWU", np.linspace(0.2, 0.8, 100) + noise)
    assert rising[[0, 25, 50, 79]] == pytest.approx([1e-3, 1e-3**0.5, 1.0, 1.0])  # nothing says stop: half of the run
    assert rising[90] == pytest.approx(0.5)  # in the midst of the last fifth's cosine
    best = 20
    fallen = rates("AutoWU", 0.8 - 0.02 * np.abs(np.arange(100) - best) + noise)
    assert fallen[best:45].max() > 3 * fallen[60]  # it went on for some tests, and came back
    assert fallen[60] == pytest.approx(1e-3 ** (1 - best / 50), rel=0.5)


def test_zclip_clips_an_outlier_to_the_usual_and_all_else_at_one() -> None:
    clip = ARMS["ratio 0.285 ZClip"](Plan(peak=1.0, steps=40)).clip
    assert clip is not None

    def clipped(norm: float) -> float:
        gradient = torch.full((4,), norm / 2)
        clip(gradient)
        return float(gradient.norm())

    usual = [clipped(0.1 + 0.001 * (step % 5)) for step in range(60)]
    assert usual[-5:] == pytest.approx([0.1, 0.101, 0.102, 0.103, 0.104])
    assert clipped(0.9) < 0.2
    clip = ARMS["ratio 0.285 ZClip"](Plan(peak=1.0, steps=40)).clip
    assert clipped(3.0) == pytest.approx(1.0)  # without a history there are no outliers


def test_the_kl_coefficient_follows_the_kl_to_the_reference() -> None:
    driver = ARMS["ratio 0.285 adaptive KL coefficient"](Plan(peak=1.0, steps=100, kl_coef=0.02))
    pace = 1 / (100 * 10_000 / (512 * 1005))
    driver.step({"reference_kl": 0.11})  # a tenth above verl's target
    assert driver.kl_coef == pytest.approx(0.02 * (1 + 0.1 * pace))
    driver.step({"reference_kl": 5.0})
    assert driver.kl_coef == pytest.approx(0.02 * (1 + 0.1 * pace) * (1 + 0.2 * pace))
    assert driver.rate == pytest.approx(3 / 28)


def test_each_run_has_its_own_coefficient_and_clipping() -> None:
    made, starts = world("chain_sum"), references("chain_sum")
    clips = {1: lambda gradient: gradient.zero_()}
    both = Runs(made, shape_of(made), [starts[0], starts[0], starts[0]], [0, 0, 0], epochs=1, clips=clips)
    both.kl_coef_R[2] = 1.0
    first = both.flat_RW.detach().clone()
    both.step([1e-3, 1e-3, 1e-3])
    moved = (both.flat_RW.detach() - first).abs().max(1).values
    assert moved[1] == 0 < moved[0]
    rewards = both.step([1e-3, 1e-3, 1e-3])["kl_reward"]
    assert rewards[2] != rewards[0]


def test_a_slice_is_kept_and_read_back(tmp_path: Path) -> None:
    part = Slice("chain_sum", "ours", (0, 1), peaks=(1e-3, 1e-1))
    keep(part, run([part], steps=45, progress=False)[0], tmp_path)
    table = load(tmp_path)
    assert len(table.runs) == 4
    kept = table.cell("chain_sum", "ours", 1e-1)
    assert [run_.seed for run_ in kept] == [0, 1]
    assert all(run_.rates.max() < 0.05 for run_ in kept)  # lr .1 is far past what a run bears
    assert 0 < kept[0].outcome.area < 1


def test_stacked_slices_are_told_apart() -> None:
    arms = ("ratio 0", "ours", "RAdam", "ratio 0.1")
    parts = [Slice("chain_sum", arm, (0, 1), peaks=(1e-3, 1e-2)) for arm in arms]
    first, second, third = stacks(parts, 2)
    assert [part.arm for part in (*first, *second, *third)] == ["ratio 0", "ours", "ratio 0.1", "RAdam"]
    both = run(first, steps=3, progress=False)
    for part, found in zip(first, both, strict=True):
        alone = run([part], steps=3, progress=False)[0]
        np.testing.assert_allclose(found["lr"], alone["lr"], rtol=1e-2)
        assert found["seed"].tolist() == [0, 1, 0, 1]
        np.testing.assert_allclose(found["kl"], alone["kl"], rtol=1e-2, atol=1e-6)
    assert both[0]["lr"][:, 0].tolist() == [1e-3, 1e-3, 1e-2, 1e-2]


def test_further_runs_lie_around_the_edge_that_the_grid_has_shown() -> None:
    table = load()
    for task, (below, at) in AROUND_EDGE.items():
        peaks = table.peaks(task)
        assert (below, at) == (peaks[peaks.index(at) - 1], table.edge(task)) == (below, table.edge(task, epochs=4))
    assert [part.epochs for part in around_edge(("search",), ("ours", "rsl_rl"), epochs=4)] == [4, 4]
    parts = list(around_edge(("chain_sum", "search_leak"), ("ours",)))
    assert [(part.task, part.seeds, part.peaks) for part in parts] == [("chain_sum", tuple(range(8, 16)), (3e-4, 1e-3))]


def one(arm: str, scores: np.ndarray, task: str = "chain_sum", seed: int = 0, peak: float = 1e-3) -> Run:
    found = outcome(scores, np.zeros(len(scores)), float(scores[-1]), started=1.0)
    return Run(task, arm, 1, peak, seed, found, scores, scores, np.ones(len(scores)), np.ones(len(scores)))


def test_the_table_around_the_edge_adds_the_grids_seeds() -> None:
    fine, fallen = np.ones(60), np.r_[np.ones(30), np.zeros(30)]
    grid = Table([one("ours", fine, peak=3e-4), one("ours", fallen), one("ours", fallen, peak=3e-2)])
    more = Table([one("ours", fine, seed=8, peak=3e-4), one("ours", fine, seed=8)])
    rows = edge_table(grid, more).splitlines()
    assert rows[-1].startswith("| ours | ")
    assert "| 1.000 | 0.750 (1/2) | 1/4 |" in rows[-1]


def test_the_best_arm_in_hindsight_is_another_one_on_each_task() -> None:
    on_search = {"ratio 0": (0.1, 0.1), "rsl_rl": (0.5, 0.65), "ours": (0.6, 0.6), "RAdam": (0.7, 0.7)}
    on_sums = {"ratio 0": (0.1, 0.1), "rsl_rl": (0.5, 0.5), "ours": (0.6, 0.6), "RAdam": (0.3, 0.3)}
    table = Table(
        one(arm, np.full(60, score), task, seed)
        for task, scores in (("search", on_search), ("chain_sum", on_sums))
        for arm, pair in scores.items()
        for seed, score in enumerate(pair)
    )
    found = {str(claim["claim"]): claim["value"] for claim in claims(table)}
    assert found["3. probability that ours improves on rsl_rl, area"] == 0.75
    assert found[f"3. probability that {ANY} improves on rsl_rl, area"] == 1.0


def test_areas_are_compared_on_the_seeds_that_both_have() -> None:
    """The fixed schedule's second seed is a bad one: where ours has not run it, it does not count."""
    arms = {"ratio 0": (0.5, 0.1), "ratio 0.1": (0.4,), "ours": (0.5, 0.1)}
    table = Table(
        one(arm, np.full(60, score), seed=seed) for arm, scores in arms.items() for seed, score in enumerate(scores)
    )
    pair = "2. least area over the best (peak, schedule) pair's, peaks from a fifth of the edge: ours"
    found = {str(claim["claim"]): claim["value"] for claim in claims(table)}
    assert found[pair] == 1.0  # .5 over .5, not .3 over .4
    fair = table.fair("chain_sum", 1, ("ours", "ratio 0.1", "RAdam"))
    assert sorted((run.arm, run.seed) for run in fair.runs) == [("ours", 0), ("ratio 0.1", 0)]


def test_the_best_is_that_of_a_cell_and_not_of_its_luckiest_run() -> None:
    early, late = np.r_[np.ones(30), np.zeros(30)], np.r_[np.zeros(30), np.ones(30)]
    pair = [one("ours", early), one("ours", late, seed=1), one("ours", early, "search")]
    assert Table(pair).best("chain_sum") == pytest.approx(0.5)
    assert Table([*pair, one("rsl_rl", np.full(60, 0.7))]).best("chain_sum") == pytest.approx(0.7)


def test_what_a_run_could_tell_of_two_targets() -> None:
    noise = np.tile([0.05, -0.05], 100)
    safe = [one("ratio 0", np.ones(200)), one("ratio 0", np.zeros(200), peak=3e-3)]

    def row(slope: float) -> list[str]:
        lines = {"ours": 0.0005 * np.arange(200), "rsl_rl": slope * np.arange(200)}
        both = [one(arm, line + sign * noise, peak=3e-3) for arm, line in lines.items() for sign in (1, -1)]
        return [cell.strip() for cell in evidence_table(Table(safe + both)).splitlines()[-1].split("|")[1:-1]]

    assert row(0.001)[:4] == ["chain_sum", "+0.050", "+0.100", "0.071"]
    assert row(0.0005)[4:] == ["0.00", "over 100,000"]
    z, episodes = float(row(0.0015)[4]), float(row(0.0015)[5].replace(",", ""))
    assert float(row(0.0025)[4]) == pytest.approx(2 * z, abs=0.01)
    assert episodes == pytest.approx(32 * (2 / z) ** 2, rel=0.03)


def test_the_kl_that_was_spent_is_a_multiple_of_the_falling_target() -> None:
    """.01 for a quarter of the nominal 57 steps, then as 1 / step, to a tenth; the first 20 steps do not count."""
    target = np.array([0.01 * max(14.25 / max(step + 1, 14.25), 0.1) for step in range(200)])
    safe = [one("ratio 0", np.ones(200)), one("ratio 0", np.zeros(200), peak=3e-3)]
    ours = replace(one("ours", np.ones(200), peak=3e-3), kls=np.r_[np.full(20, 9.0), 1.5 * target[20:]])
    told = spent_table(Table([*safe, ours]), Table([*safe, ours])).splitlines()
    assert told[2:] == ["| chain_sum | 1.50 |  |", "| chain_sum, large | 1.50 |  |"]


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
    assert wilson(0.0, 10) == pytest.approx([0.0, 0.2775], abs=1e-4)
    assert wilson(0.3, 10) == pytest.approx([0.1078, 0.6032], abs=1e-4)
    ours, theirs = (
        {("a", 1e-3): [2.0, 3.0], ("b", 1e-3): [1.0, 1.0]},
        {("a", 1e-3): [0.0, 1.0], ("b", 1e-3): [1.0, 1.0]},
    )
    chance, (low, high) = improvement(ours, theirs)
    assert chance == pytest.approx(0.75)  # always in a, even in b
    assert low == high == pytest.approx(0.75)


def test_a_seed_is_resampled_with_all_its_peaks_and_in_both_arms() -> None:
    """Two seeds, one good at both peaks: a mean of 0, 1/2 or 1, where apart they would also come to 1/4 and 3/4."""
    group = {("a", 1e-3): [0.0, 1.0], ("a", 1e-2): [0.0, 1.0]}
    seen: list[tuple[float, float]] = []

    def means(tables: list[Blocks]) -> float:
        seen.append((float(tables[0][0].mean()), float(tables[1][0].mean())))
        return seen[-1][0]

    assert interval(means, [group, group]) == [0.0, 1.0]
    assert {first for first, _ in seen} == {0.0, 0.5, 1.0}
    assert all(first == second for first, second in seen)
