"""The numbers that the study set out to reach, each with its interval, met or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from benchmarks.experiments.stability.gaming import alarms
from benchmarks.experiments.stability.measures import Blocks, Outcome, blocks, chance, improvement, interval, wilson
from benchmarks.experiments.stability.sweep import HELD_OUT_TASKS, STEPS, TUNING_TASKS
from benchmarks.experiments.stability.table import Table, units
from benchmarks.rebuilding import Claim, entry

SOUND = (*TUNING_TASKS, *HELD_OUT_TASKS)  # the tasks whose KL is right
CONSTANT = ("ratio 0", "ratio 0.03", "ratio 0.1", "ratio 0.285", "ratio 0.95")
FIXED = (*CONSTANT, *(f"{ratio} cosine" for ratio in CONSTANT))
OURS = ("ours", "ours cosine")
RULE = "rsl_rl"
HINDSIGHT = "the best fixed schedule at this peak or a lower one, in hindsight"
ANY = "the best of all arms for each task, in hindsight,"


def claims(table: Table) -> list[Claim]:
    """All that the results so far can say."""
    found = [*_collapses(table), *_areas(table), *_rules(table), *_variants(table), *_speed(table)]
    found += alarms(table, SOUND)
    return [claim for claim in found if claim["value"] == claim["value"]]  # not a number: nothing was run for it


def _claim(claim: str, target: float, value: float, bounds: list[float], met: bool, runs: int) -> Claim:
    return entry(claim, target, value, bounds, bool(met), runs=runs)


def _collapses(table: Table) -> Iterator[Claim]:
    for arm in OURS:
        runs = [run for run in table.runs if run.arm == arm and run.task in SOUND]
        if runs:
            share = sum(run.outcome.collapsed for run in runs) / len(runs)
            yield _claim(f"1. collapses of {arm}, share of runs", 0, share, wilson(share, units(runs)), share == 0,
                         len(runs))  # fmt: skip


def _areas(table: Table) -> Iterator[Claim]:
    for arm in (*OURS, HINDSIGHT):
        below, beyond, grid, best, count = [], [], [], [], 0
        for task, epochs in sound_settings(table, OURS[0] if arm == HINDSIGHT else arm):
            peaks, edge = table.peaks(task, epochs), table.edge(task, epochs)
            fair = table.fair(task, epochs, (arm, *FIXED))
            count += sum(run.arm in (FIXED if arm == HINDSIGHT else (arm,)) for run in fair.runs)
            fixed = {(peak, other): _area(fair, task, other, peak, epochs) for peak in peaks for other in FIXED}
            if arm == HINDSIGHT:
                ours = {peak: _most(area for (p, _), area in fixed.items() if p <= peak) for peak in peaks}
            else:
                ours = {peak: _area(fair, task, arm, peak, epochs) for peak in peaks}
            for peak in peaks:
                (below if peak < edge else beyond).append(ours[peak] / _most(fixed[peak, other] for other in FIXED))
                if peak >= edge / 5.01:
                    best.append(ours[peak] / _most(fixed.values()))
            single = _most(np.mean([fixed[peak, other] for peak in peaks]) for other in CONSTANT)
            grid.append(np.mean(list(ours.values())) / single)
        for what, target, ratios in (
            ("2. least area over the best fixed schedule's at the same peak, peaks below the edge", 0.98, below),
            ("2. the same at and above the edge", 1.10, beyond),
            ("2. least area, mean over the grid, over the best single ratio's", 1.25, grid),
            ("2. least area over the best (peak, schedule) pair's, peaks from a fifth of the edge", 0.97, best),
        ):
            if ratios:
                worst = min(ratios)
                yield _claim(f"{what}: {arm}", target, worst, [worst, max(ratios)], worst >= target, count)


def _rules(table: Table) -> Iterator[Claim]:
    rules = (
        ("ours", "rsl_rl", 0.75, 0.8, 0.6),
        ("ours", "KLAdaptiveLR", 0.75, 0.8, 0.6),
        ("ours cosine", "rsl_rl", 0.75, 0.8, 0.6),
        ("ours", "rsl_rl falling", 0.6, 0.6, 0.5),
        ("ours", "rsl_rl falling, low start", 0.6, 0.6, 0.5),
        ("ours cosine", "rsl_rl cosine", 0.6, 0.6, 0.5),
    )
    for mine, other, area, final, least in rules:
        for what, target, value in (("area", area, _by_area), ("final score", final, _by_evaluation)):
            pairs = {mine: _strata(table, mine, other, value)}
            if mine == OURS[0]:
                pairs[ANY] = _best_arms(table, other, value)
            for who, (ours, theirs) in pairs.items():
                if ours:
                    found, bounds = improvement(ours, theirs)
                    yield _claim(f"3. probability that {who} improves on {other}, {what}", target, found, bounds,
                                 found >= target and bounds[0] > least, _count(ours))  # fmt: skip
        for what, jitter in (("", _jitter), (" after the first 20 steps", _settled)):
            ours, theirs = _strata(table, mine, other, jitter)
            if ours:
                yield _ratio(f"3. lr jitter{what} of {mine} over {other}'s", 0.5, ours, theirs, most=True)


def _variants(table: Table) -> Iterator[Claim]:
    ours, theirs = _strata(table, "ours in-loop KL", "ours", _by_area)
    if ours:
        yield _ratio("4. area with the in-loop KL over that with the post-update KL", 0.97, ours, theirs)
    blind, guess = _strata(table, "ours without KL", "ratio 0.285", lambda run: float(run.collapsed))
    if blind and any(map(any, guess.values())):
        yield _ratio("5. collapses without KL over those of ratio 0.285", 0.1, blind, guess, most=True)


def _speed(table: Table) -> Iterator[Claim]:
    for arm in (*OURS, RULE):
        for other, target, safe in (("ratio 0", 1.1, True), ("ratio 0.95", 0.5, False)):
            ratios = []
            for task, epochs in sound_settings(table, arm):
                goal, fair = 0.8 * table.best(task, epochs), table.fair(task, epochs, (arm, other))
                for peak in table.peaks(task, epochs):
                    if safe and not peak < table.edge(task, epochs):
                        continue
                    mine = [min(run.outcome.steps_to(goal), STEPS) for run in fair.cell(task, arm, peak, epochs)]
                    theirs = [run.outcome.steps_to(goal) for run in fair.cell(task, other, peak, epochs)]
                    if mine and theirs and np.isfinite(np.median(theirs)):
                        ratios.append(float(np.median(mine) / np.median(theirs)))
            if ratios:
                middle = float(np.median(ratios))
                words = "below the edge" if safe else "at all peaks where the other arrives"
                yield _claim(f"6. steps to .8 of the best: {arm} over {other}, {words}, median over cells", target,
                             middle, [min(ratios), max(ratios)], middle <= target, len(ratios))  # fmt: skip


def _by_area(found: Outcome) -> float:
    return found.area


def _jitter(found: Outcome) -> float:
    return found.rate_jitter


def _settled(found: Outcome) -> float:
    return found.settled_jitter


def _by_evaluation(found: Outcome) -> float:
    return found.evaluation


def _area(table: Table, task: str, arm: str, peak: float, epochs: int) -> float:
    return table.mean(task, arm, peak, _by_area, epochs)


def _most(values: Iterable[float]) -> float:
    return float(np.nanmax(list(values)))


def sound_settings(table: Table, *arms: str) -> list[tuple[str, int]]:
    """Tasks whose KL is right, with the number of epochs, on which all these arms and no warmup have run."""
    both = set.intersection(*(set(table.settings(arm)) for arm in (*arms, "ratio 0")))
    return sorted(setting for setting in both if setting[0] in SOUND)


Strata = dict[object, list[float]]


def _best_arms(table: Table, other: str, value: Callable[[Outcome], float]) -> tuple[Strata, Strata]:
    """`_strata` of the arm that improves most on the other one, chosen for each task and number of epochs."""
    ours: Strata = {}
    theirs: Strata = {}
    for setting in sound_settings(table, other):
        arms = {run.arm for run in table.runs if (run.task, run.epochs) == setting} - {other}
        pairs = [_strata(table, arm, other, value, [setting]) for arm in sorted(arms)]
        best = max(pairs, key=lambda pair: chance(*pair))
        ours |= best[0]
        theirs |= best[1]
    return ours, theirs


def _strata(
    table: Table,
    mine: str,
    other: str,
    value: Callable[[Outcome], float],
    settings: list[tuple[str, int]] | None = None,
) -> tuple[Strata, Strata]:
    """Both arms' values by task, epochs and peak, of the seeds that both have run; of all settings, or of these."""
    ours: Strata = {}
    theirs: Strata = {}
    for task, epochs in settings or sound_settings(table, mine, other):
        for peak in table.peaks(task, epochs):
            first, second = table.cell(task, mine, peak, epochs), table.cell(task, other, peak, epochs)
            seeds = {run.seed for run in first} & {run.seed for run in second}
            if seeds:
                ours[task, epochs, peak] = [value(run.outcome) for run in first if run.seed in seeds]
                theirs[task, epochs, peak] = [value(run.outcome) for run in second if run.seed in seeds]
    return ours, theirs


def _ratio(claim: str, target: float, ours: Strata, theirs: Strata, most: bool = False) -> Claim:
    """A ratio of means over all strata."""

    def statistic(tables: list[Blocks]) -> float:
        mine, others = (np.concatenate([block.mean(1) for block in table]).mean() for table in tables)
        return float(mine / max(others, 1e-9))

    value = statistic([blocks(ours), blocks(theirs)])
    met = value <= target if most else value >= target
    return _claim(claim, target, value, interval(statistic, [ours, theirs]), met, _count(ours))


def _count(strata: Strata) -> int:
    return sum(map(len, strata.values()))
