"""Around each task's edge, where a choice of the peak is made: the grid's seeds there, and as many more."""

from __future__ import annotations

import numpy as np

from benchmarks.experiments.stability.measures import wilson
from benchmarks.experiments.stability.sweep import AROUND_EDGE
from benchmarks.experiments.stability.table import Run, Table, units
from benchmarks.rebuilding import markdown


def edge_table(grid: Table, more: Table, epochs: int = 1) -> str:
    """A row for each arm of `more`: area and collapses at each of the peaks, and the collapses of all."""
    runs = [run for run in more.runs if run.epochs == epochs]
    found = {(run.task, run.peak) for run in runs}
    cells = [(task, peak) for task, peaks in AROUND_EDGE.items() for peak in peaks if (task, peak) in found]
    arms = sorted({run.arm for run in runs}, key=lambda arm: ("ours" in arm, arm))
    names = ("arm", *(f"{task} {peak:.0e}" for task, peak in cells), "collapsed", "95 % interval")
    rows = [
        _row(arm, [[*grid.cell(t, arm, p, epochs), *more.cell(t, arm, p, epochs)] for t, p in cells]) for arm in arms
    ]
    return markdown(names, rows)


def _row(arm: str, cells: list[list[Run]]) -> list[str]:
    fallen = [sum(run.outcome.collapsed for run in cell) for cell in cells]
    areas = [f"{np.mean([run.outcome.area for run in cell]):.3f}" for cell in cells]
    told = [area + (f" ({n}/{len(cell)})" if n else "") for area, n, cell in zip(areas, fallen, cells, strict=True)]
    runs = sum(map(len, cells))
    low, high = wilson(sum(fallen) / runs, units(run for cell in cells for run in cell))
    return [arm, *told, f"{sum(fallen)}/{runs}", f"{low:.3f} to {high:.3f}"]
