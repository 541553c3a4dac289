"""All tasks and peaks together: performance profiles, and how much an arm's result hangs on the peak.

Scores are areas over that of the best fixed schedule of the task at its best peak, decays included. Performance
profile: the share of runs above a score (Agarwal et al. 2021). Sensitivity to the lr: what is lost in the mean over the
peaks against the arm's own best one (Wortsman et al. 2023, there for losses).
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from benchmarks.experiments.stability.claims import FIXED, SOUND
from benchmarks.experiments.stability.measures import interval, iqm, wilson
from benchmarks.experiments.stability.table import Table, units
from benchmarks.rebuilding import drawing, markdown, svg


def normalised(table: Table, arm: str, epochs: int = 1) -> dict[tuple[str, float], list[float]]:
    """For each task and peak the runs' areas over the best fixed one; the tasks whose KL is right."""
    found = {}
    for task in SOUND:
        peaks = table.peaks(task, epochs)
        fixed = [table.mean(task, other, peak, lambda run: run.area, epochs) for peak in peaks for other in FIXED]
        best = np.nanmax(fixed)
        for peak in peaks:
            if runs := table.cell(task, arm, peak, epochs):
                found[task, peak] = [run.outcome.area / float(best) for run in runs]
    return found


def whole(table: Table, epochs: int = 1) -> list[str]:
    """The arms that have run on all those tasks."""
    arms = sorted({run.arm for run in table.runs}, key=lambda arm: ("ours" in arm, arm))
    return [arm for arm in arms if {(task, epochs) for task in SOUND} <= set(table.settings(arm))]


def summary(table: Table, epochs: int = 1) -> str:
    """A row for each arm."""
    rows = []
    for arm in whole(table, epochs):
        found = normalised(table, arm, epochs)
        means = {cell: float(np.mean(areas)) for cell, areas in found.items()}
        lost = [
            max(value for (other, _), value in means.items() if other == task) - mean
            for (task, _), mean in means.items()
        ]
        runs = [run for run in table.runs if run.arm == arm and run.task in SOUND and run.epochs == epochs]
        fallen = sum(run.outcome.collapsed for run in runs)
        jitter = float(np.mean([run.outcome.rate_jitter for run in runs]))
        drawdown = float(np.mean([run.outcome.drawdown for run in runs]))
        all_areas = [area for areas in found.values() for area in areas]
        bounds = interval(lambda tables: iqm(np.concatenate([block.ravel() for block in tables[0]])), [found])
        numbers = [f"{cell:.3f}" for cell in (np.mean(lost), drawdown, jitter)]
        middle = f"{iqm(all_areas):.3f} ({_range(bounds)})"
        share = f"{fallen}/{len(runs)} ({_range(wilson(fallen / len(runs), units(runs)))})"
        rows.append([arm, f"{np.mean(all_areas):.3f}", middle, *numbers, share])
    names = ("arm", "mean", "IQM (95 %)", "lr sensitivity", "drawdown", "lr jitter", "collapsed (95 %)")
    return markdown(names, rows)


def _range(bounds: list[float]) -> str:
    low, high = bounds
    return f"{low:.3f} to {high:.3f}"


def figure(table: Table, arms: tuple[str, ...], colours: tuple[str, ...], dashes: tuple[str, ...]) -> str:
    """Performance profiles as SVG."""
    with drawing("stability"):
        picture = Figure(figsize=(7.6, 3.2))
        axes = picture.subplots()
        levels = np.linspace(0.0, 1.1, 221)
        for arm, colour, dash in zip(arms, colours, dashes, strict=True):
            areas = np.array([area for cell in normalised(table, arm).values() for area in cell])
            shares = [(areas > level).mean() for level in levels] if areas.size else [np.nan] * len(levels)
            axes.plot(levels, shares, dash, color=colour, label=arm, linewidth=2 if "ours" in arm else 1.4)
        axes.set(xlabel="area, as a share of the best fixed schedule at its best peak", ylabel="share of runs above")
        axes.set_ylim(0, 1.02)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower left")
        picture.tight_layout()
        return svg(picture, facecolor="white")
