"""The results as one table of runs, and the questions that the claims and the tables ask of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.experiments.stability.measures import Outcome, outcome

RUNS = Path(__file__).parents[2] / "results" / "stability" / "runs"
EDGE = RUNS.parent / "edge"  # further runs around the edge
LARGE = RUNS.parent / "large"  # those of the larger policies


@dataclass(frozen=True, eq=False)
class Run:
    """One run: where it belongs, how it ended, and its series, each (steps,)."""

    task: str
    arm: str
    epochs: int
    peak: float
    seed: int
    outcome: Outcome
    scores: np.ndarray
    kl_rewards: np.ndarray
    rates: np.ndarray
    kls: np.ndarray


class Table:
    """Runs by task, arm, epochs and peak."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = list(runs)
        self._cells: dict[tuple[str, str, int, float], list[Run]] = defaultdict(list)
        for run in self.runs:
            self._cells[run.task, run.arm, run.epochs, run.peak].append(run)

    def cell(self, task: str, arm: str, peak: float, epochs: int = 1) -> list[Run]:
        """The runs of all seeds, by seed; empty where none was made."""
        return sorted(self._cells.get((task, arm, epochs, peak), []), key=lambda run: run.seed)

    def peaks(self, task: str, epochs: int = 1) -> list[float]:
        return sorted({run.peak for run in self.runs if (run.task, run.epochs) == (task, epochs)})

    def fair(self, task: str, epochs: int, arms: Iterable[str]) -> Table:
        """Of one task, those of the arms that have run there, on the seeds that all of these have."""
        runs = [run for run in self.runs if (run.task, run.epochs) == (task, epochs) and run.arm in set(arms)]
        seeds = set.intersection(*({run.seed for run in runs if run.arm == arm} for arm in {run.arm for run in runs}))
        return Table(run for run in runs if run.seed in seeds)

    def settings(self, arm: str) -> list[tuple[str, int]]:
        """The tasks that an arm has run, each with the number of epochs."""
        return sorted({(run.task, run.epochs) for run in self.runs if run.arm == arm})

    def best(self, task: str, epochs: int = 1) -> float:
        """The highest that a cell's smoothed score is in the mean over its seeds.

        The highest of single runs would go on growing with their number, past what any arm comes to.
        """
        cells = [runs for (t, _, e, _), runs in self._cells.items() if (t, e) == (task, epochs)]
        return max(float(np.mean([run.outcome.to_best for run in runs], axis=0).max()) for runs in cells)

    def mean(self, task: str, arm: str, peak: float, value: Callable[[Outcome], float], epochs: int = 1) -> float:
        """NaN where there are no runs."""
        found = [value(run.outcome) for run in self.cell(task, arm, peak, epochs)]
        return float(np.mean(found)) if found else float("nan")

    def edge(self, task: str, epochs: int = 1) -> float:
        """The least peak at which no warmup begins to fail: a collapse, or a tenth of its best area lost."""
        peaks = self.peaks(task, epochs)
        areas = [self.mean(task, "ratio 0", peak, lambda found: found.area, epochs) for peak in peaks]
        best = int(np.nanargmax(areas))
        for peak, area in list(zip(peaks, areas, strict=True))[best:]:
            if area < 0.9 * areas[best] or any(
                run.outcome.collapsed for run in self.cell(task, "ratio 0", peak, epochs)
            ):
                return peak
        return float("inf")


def units(runs: Iterable[Run]) -> int:
    """How many of the runs are independent: those of one seed have the same problems and noise at every peak."""
    return len({(run.task, run.epochs, run.seed) for run in runs})


@cache
def load(folder: Path = RUNS) -> Table:
    """All runs that lie in `folder`."""
    files = [np.load(path) for path in sorted(folder.glob("*/*.npz"))]
    start: dict[tuple[str, int], list[float]] = defaultdict(list)  # a run's score before its first update, by reference
    for file in files:
        for seed, scores in zip(file["seed"], file["task_reward"], strict=True):
            start[str(file["task"]), int(seed) % 2].append(float(scores[0]))
    return Table(run for file in files for run in _runs(file, start))


def _runs(file: dict[str, np.ndarray], start: dict[tuple[str, int], list[float]]) -> Iterable[Run]:
    task, arm, epochs = str(file["task"]), str(file["arm"]), int(file["epochs"])
    columns = ("peak", "seed", "task_reward", "ln_lr", "evaluation", "kl_reward", "ln_kl")
    for peak, seed, scores, ln_rates, evaluation, kl_rewards, ln_kls in zip(
        *(file[name] for name in columns), strict=True
    ):
        began = float(np.mean(start[task, int(seed) % 2]))
        found = outcome(scores, ln_rates, float(evaluation), began)
        rates, kls = (np.exp(logs.astype(float)) for logs in (ln_rates, ln_kls))
        yield Run(task, arm, epochs, float(peak), int(seed), found, scores, kl_rewards, rates, kls)
