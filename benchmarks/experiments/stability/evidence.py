"""Could a run find out by its own rewards whether it wants a larger KL target? Two targets apart, against the noise.

Imagined is a run that goes by the one target and by the other, in turn, and fits its scores by least squares: a level
that bends, and a further slope wherever the larger target held. The slopes are those of the runs that had one target
throughout, the noise is that of their scores.

And what a rule spends that is given the same target as ours: for the KL of the two is not the same.
"""

from __future__ import annotations

import numpy as np

from adaptive_warmup import Config
from benchmarks.experiments.stability.claims import sound_settings
from benchmarks.experiments.stability.driver import Plan, nominal_steps
from benchmarks.experiments.stability.engine import BATCH
from benchmarks.experiments.stability.measures import LAST
from benchmarks.experiments.stability.sweep import STEPS
from benchmarks.experiments.stability.table import Run, Table
from benchmarks.rebuilding import markdown

SMALLER, LARGER = "ours", "rsl_rl"  # a target that falls as 1/t, and one of .01 throughout
FALLING = (SMALLER, "rsl_rl falling")
FIRST = 60  # step from which on the one is well below the other
BLOCKS = (5, 10, 20, 35, 70)  # steps before it changes the target; the best of these counts
SURE = 2.0  # standard errors
MANY = 100_000  # episodes in a step


def evidence_table(table: Table) -> str:
    """A row for each task and number of epochs."""
    names = ("task", "slope, falling target", "slope, .01", "noise of a score", "z", f"episodes for z = {SURE:g}")
    return markdown(names, [_row(table, *setting) for setting in _settings(table, SMALLER, LARGER)])


def spent_table(table: Table, large: Table) -> str:
    """The mean KL over the falling target, after the way up: a row for each setting, a column for each arm."""
    target_T = np.array([Config(nominal_steps(Plan(1.0, STEPS))).target_at(step) for step in range(STEPS)])
    rows = []
    for each, words in ((table, ""), (large, ", large")):
        for task, epochs in _settings(each, SMALLER):
            runs = [_runs(each, task, arm, epochs) for arm in FALLING]
            shares = [[(run.kls / target_T)[LAST:] for run in found] for found in runs]
            told = [f"{np.nanmean(share):.2f}" if share else "" for share in shares]
            rows.append([_name(task, epochs) + words, *told])
    return markdown(("task", *FALLING), rows)


def _settings(table: Table, *arms: str) -> list[tuple[str, int]]:
    """Tasks with the number of epochs, few epochs first."""
    return sorted(sound_settings(table, *arms), key=lambda one: one[1])


def _row(table: Table, task: str, epochs: int) -> list[str]:
    runs = {arm: _runs(table, task, arm, epochs) for arm in (SMALLER, LARGER)}
    slopes = {arm: _slope(np.mean([_late(run) for run in found], 0)) for arm, found in runs.items()}
    noise = float(np.sqrt(np.mean([np.diff(_late(run)) ** 2 for found in runs.values() for run in found]) / 2))
    z = abs(slopes[LARGER] - slopes[SMALLER]) / (noise * min(_error(len(_late(runs[SMALLER][0])), n) for n in BLOCKS))
    per_hundred = [f"{100 * slopes[arm]:+.3f}" for arm in (SMALLER, LARGER)]
    return [_name(task, epochs), *per_hundred, f"{noise:.3f}", f"{z:.2f}", _episodes(z)]


def _name(task: str, epochs: int) -> str:
    return task if epochs == 1 else f"{task}, {epochs} epochs"


def _episodes(z: float) -> str:
    """The noise falls as the root of them."""
    found = BATCH * (SURE / z) ** 2 if z else np.inf
    return f"{found:,.0f}" if found < MANY else f"over {MANY:,}"


def _runs(table: Table, task: str, arm: str, epochs: int) -> list[Run]:
    """Those at peaks that are high enough for the target to be met."""
    peaks = [peak for peak in table.peaks(task, epochs) if peak >= table.edge(task, epochs)]
    return [run for peak in peaks for run in table.cell(task, arm, peak, epochs)]


def _late(run: Run) -> np.ndarray:
    return run.scores[FIRST:].astype(float)


def _slope(scores: np.ndarray) -> float:
    return float(np.polyfit(np.arange(len(scores)), scores, 1)[0])


def _error(steps: int, block: int) -> float:
    """Standard error of the difference of two slopes, for noise of 1, where they take turns."""
    t = np.arange(steps)
    turns = np.where((t // block) % 2, 0.5, -0.5).cumsum()
    design = np.stack([np.ones(steps), t, t**2, turns], 1)
    return float(np.sqrt(np.linalg.inv(design.T @ design)[-1, -1]))
