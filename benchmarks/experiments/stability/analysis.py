"""Rebuilds the study's numbers from the raw runs: `summary.json`, the tables in docs/study.md, and its figures.

With a folder of runs as its argument it only prints their tables.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptive_warmup.quoting import plural
from benchmarks.experiments.stability import profiles
from benchmarks.experiments.stability.claims import SOUND, claims
from benchmarks.experiments.stability.edge import edge_table
from benchmarks.experiments.stability.evidence import evidence_table, spent_table
from benchmarks.experiments.stability.measures import iqm
from benchmarks.experiments.stability.table import EDGE, LARGE, Table, load
from benchmarks.rebuilding import RESULTS, ROOT, Claim, between, drawing, markdown, summary_file, svg, write

SUMMARY = RESULTS / "stability" / "summary.json"
DOCS = ROOT / "docs"
STUDY = DOCS / "study.md"
DRAWN = ("ratio 0", "ratio 0.285", "ratio 0.95", "rsl_rl", "ours", "ours cosine")
COLOURS = ("#999999", "#E69F00", "#D55E00", "#56B4E9", "#0072B2", "#009E73")  # Okabe and Ito's
DASHES = (":", "--", "-.", "--", "-", "--")


def tables(table: Table) -> str:
    """For each task and number of epochs, area and collapses by arm and peak."""
    parts = []
    for task, epochs in sorted({(run.task, run.epochs) for run in table.runs}, key=lambda one: (one[1], _rank(one[0]))):
        arms, peaks = _arms(table, task, epochs), table.peaks(task, epochs)
        counts = sorted({len(table.cell(task, arm, peaks[0], epochs)) for arm in arms})
        words = f"{epochs} epochs, " if epochs > 1 else ""
        words += f"edge {table.edge(task, epochs):.0e}, " if "ratio 0" in arms else ""
        seeds = f"{counts[0]} to {counts[-1]}" if counts[0] != counts[-1] else str(counts[0])
        parts.append(f"**{task}** ({words}{seeds} seeds a cell)\n")
        names = ("arm", *(f"{peak:.0e}" for peak in peaks), "mean", "final (IQM)")
        parts.append(markdown(names, [_row(table, task, epochs, arm) for arm in arms]))
    return "\n".join(parts)


def _row(table: Table, task: str, epochs: int, arm: str) -> list[str]:
    cells, peaks = [], table.peaks(task, epochs)
    for peak in peaks:
        runs = table.cell(task, arm, peak, epochs)
        fallen = sum(run.outcome.collapsed for run in runs)
        area = f"{np.mean([run.outcome.area for run in runs]):.3f}" if runs else ""
        cells.append(area + (f" ({fallen}/{len(runs)})" if fallen else ""))
    found = [run.outcome for peak in peaks for run in table.cell(task, arm, peak, epochs)]
    mean, final = np.mean([run.area for run in found]), iqm([run.evaluation for run in found])
    return [arm, *cells, f"{mean:.3f}", f"{final:.3f}"]


def _arms(table: Table, task: str, epochs: int) -> list[str]:
    found = {run.arm for run in table.runs if (run.task, run.epochs) == (task, epochs)}
    return sorted(found, key=lambda arm: ("ours" in arm, arm))


def _rank(task: str) -> tuple[int, str]:
    return (SOUND.index(task) if task in SOUND else len(SOUND), task)


def claims_table(found: list[Claim]) -> str:
    """Every number that was to be reached, and what came of it."""
    rows = []
    for claim in found:
        bounds = " to ".join(map(str, cast("list[float]", claim["interval"])))
        values = [str(claim[name]) for name in ("claim", "target", "value")]
        rows.append([*values, bounds, str(claim["runs"]), "yes" if claim["met"] else "**no**"])
    return markdown(("", "target", "value", "95 % interval, or range", "runs or cells", "met"), rows)


def figure(table: Table, large: Table) -> str:
    """Area under the score against the peak lr, a row for each task, as SVG.

    A column for each number of epochs, and one for the larger policies.
    """
    columns = [(table, epochs, "") for epochs in _epochs(table)] + [
        (large, epochs, ", large") for epochs in _epochs(large)
    ]
    with drawing("stability"):
        picture = Figure()
        _draw(picture, columns)
        return svg(picture, facecolor="white")  # for dark pages too


def _epochs(table: Table) -> list[int]:
    return sorted({epochs for task, epochs in table.settings("ratio 0") if task in SOUND})


def _draw(picture: Figure, columns: list[tuple[Table, int, str]]) -> None:
    tasks = [task for task in SOUND if (task, columns[0][1]) in columns[0][0].settings("ratio 0")]
    picture.set_size_inches(3.2 * len(columns) + 0.6, 2.2 * len(tasks) + 0.5)
    axes = picture.subplots(len(tasks), len(columns), squeeze=False, sharex=True, sharey="row")
    for row, task in zip(axes, tasks, strict=True):
        for panel, (table, epochs, words) in zip(row, columns, strict=True):
            if (task, epochs) in table.settings("ratio 0"):
                _panel(panel, table, task, epochs)
            panel.set(xscale="log", title=f"{task.replace('_', ' ')}, {plural(epochs, 'epoch')}{words}")
            panel.spines[["top", "right"]].set_visible(False)
        row[0].set(ylabel="mean score over the run", ylim=(0, None))
    for panel in axes[-1]:
        panel.set_xlabel("peak lr")
    handles, labels = axes[0][0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    picture.tight_layout(rect=(0, 0.04, 1, 1))


def _panel(panel: Axes, table: Table, task: str, epochs: int) -> None:
    peaks = table.peaks(task, epochs)
    for arm, colour, dash in zip(DRAWN, COLOURS, DASHES, strict=True):
        areas = [table.mean(task, arm, peak, lambda found: found.area, epochs) for peak in peaks]
        panel.plot(peaks, areas, dash, color=colour, label=arm, linewidth=2 if "ours" in arm else 1.4, marker=".")
    panel.axvline(table.edge(task, epochs), color="#cccccc", linewidth=6, zorder=0)


def rebuilt() -> dict[Path, str]:
    """Every file that follows from the runs, with the text that it should have."""
    table, large = load(), load(LARGE)
    found, at_large, study = claims(table), claims(large), STUDY.read_text(encoding="utf-8")
    parts = {"arms": profiles.summary(table), "tables": tables(table), "claims": claims_table(found)}
    parts |= {"edge": edge_table(table, load(EDGE)), "evidence": evidence_table(table)}
    parts |= {"edge at 4 epochs": edge_table(table, load(EDGE), epochs=4)}
    parts |= {"spent": spent_table(table, large), "arms at large": profiles.summary(large)}
    parts |= {"arms at 4 epochs": profiles.summary(table, epochs=4)}
    parts |= {"tables at large": tables(large), "claims at large": claims_table(at_large)}
    for name, text in parts.items():
        study = between(study, f"<!-- {name} -->\n", f"<!-- end of {name} -->", text)
    drawn = profiles.figure(table, DRAWN, COLOURS, DASHES)
    figures = {DOCS / "study" / "areas.svg": figure(table, large), DOCS / "study" / "profiles.svg": drawn}
    found += [{**claim, "claim": f"{claim['claim']}, policies ten times larger"} for claim in at_large]
    return {SUMMARY: summary_file(found), STUDY: study, **figures}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(tables(load(Path(sys.argv[1]))))
    else:
        write(rebuilt())
