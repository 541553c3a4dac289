"""Draws the docs' plots, `docs/plots/*.svg`, from the recorded runs of the demo. The same runs give the same bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from adaptive_warmup.history import Run, read
from benchmarks.rebuilding import RESULTS, ROOT, svg, write

RUNS = RESULTS / "demo"
PLOTS = ROOT / "docs" / "plots"
COLOURS = {"ratio 0.95": "#3a8fc4", "ratio 0.285": "#E69F00", "adaptive": "#009E73"}
GREY = "#7d8590"  # reads on white and on black, as do the colours
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "adaptive-warmup", "font.family": "sans-serif", "font.size": 11,
    "text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY, "axes.titlelocation": "left",
    "axes.titlesize": 11, "xtick.color": GREY, "ytick.color": GREY, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "lines.linewidth": 1.6,
}  # fmt: skip


def rebuilt() -> dict[Path, str]:
    """Every file that this makes, with its text."""
    with mpl.rc_context(STYLE):
        figures = {"edge": edge(), "gain": gain(), "safe": safe()}
        return {PLOTS / f"{name}.svg": svg(figure, transparent=True) for name, figure in figures.items()}


def edge() -> Figure:
    """Three warmups at a peak past what the run bears."""
    figure, (score, lr, kl) = stacked(3)
    for run in arms("seed-1"):
        draw(score, run, run.signal("task_reward"))
        draw(lr, run, [step["lr"] for step in run.steps])
        draw(kl, run, run.signal("kl"), linewidth=1.0)
    adaptive = arms("seed-1")[-1]
    lr.plot(*bears(adaptive), color=COLOURS["adaptive"], linewidth=1.0, linestyle=":")
    targets = [adaptive.config.target_at(step["step"]) for step in adaptive.steps]
    kl.plot([step["step"] for step in adaptive.steps], targets, color=GREY, linestyle=":", linewidth=1.0)
    kl.set_ylim(1e-5, 30)
    title(score, "task reward")
    title(lr, "learning rate; dotted: the adaptive run's ceiling", log=True)
    title(kl, "policy KL, nats per token; dotted: the target", log=True)
    return finished(figure, score, kl)


def gain() -> Figure:
    """The law, and its drift: the KL of first updates against their lr, and the gain over the steps."""
    figure, (first, later) = stacked(2, sharex=False)
    folders = ("safe-seed-0", "seed-0", "seed-1", "seed-2")
    points = [(run.steps[0]["lr"], run.signal("kl")[0]) for folder in folders for run in arms(folder)]
    low = min(points)
    ends = [low[0], max(points)[0]]
    first.plot(ends, [low[1] * (lr / low[0]) ** 2 for lr in ends], color=GREY, linestyle=":", linewidth=1.0)
    first.scatter(*zip(*points, strict=True), color=COLOURS["ratio 0.95"], s=26)
    first.set_xscale("log")
    title(first, "policy KL of the first update; dotted: KL proportional to lr squared", log=True)
    for folder, colour in zip(folders, (GREY, *COLOURS.values()), strict=True):
        steps = [(s["step"], s["lr"], s["signals"].get("kl", 0.0)) for s in arms(folder)[-1].steps]
        logs = [(step, math.log(kl) - 2 * math.log(lr)) for step, lr, kl in steps if kl > 1e-12]
        name = "peak lr 3e-4" if folder == "safe-seed-0" else f"0.01, {folder.replace('-', ' ')}"
        later.plot(*zip(*logs, strict=True), linewidth=1.0, color=colour, label=name)
    title(later, "gain ln KL - 2 ln lr of the adaptive runs over the steps")
    first.set_xlabel("learning rate")
    return finished(figure, later, later)


def safe() -> Figure:
    """The same three warmups at a peak that the run bears."""
    figure, (score, lr) = stacked(2)
    for run in arms("safe-seed-0"):
        draw(score, run, run.signal("task_reward"))
        draw(lr, run, [step["lr"] for step in run.steps])
    title(score, "task reward")
    title(lr, "learning rate")
    lr.ticklabel_format(axis="y", style="plain")
    return finished(figure, score, lr)


def arms(folder: str) -> list[Run]:
    """The three runs of one comparison, the adaptive one last."""
    return [read(RUNS / folder / f"{name.replace(' ', '-')}.jsonl") for name in COLOURS]


def bears(run: Run) -> tuple[list[int], list[float]]:
    """The lr that the run is estimated to bear, over the steps; the demo's schedule is constant after the warmup."""
    said = [step for step in run.steps if "ceiling" in step]
    return [step["step"] for step in said], [step["ceiling"] * run.about["lr"] for step in said]


def stacked(rows: int, *, sharex: bool = True) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.6, 2.1 * rows + 0.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15)  # a browser's sans-serif may be wider than the one measured here
    return figure, figure.subplots(rows, sharex=sharex)


def draw(axes: Any, run: Run, values: list[float], **how: Any) -> None:
    name = run.about["arm"]
    axes.plot([step["step"] for step in run.steps], values, color=COLOURS[name], label=name, **how)


def title(axes: Any, text: str, *, log: bool = False) -> None:
    axes.set_title(text)
    if log:
        axes.set_yscale("log")
    axes.grid(alpha=0.25, color=GREY, linewidth=0.6)


def finished(figure: Figure, named: Any, bottom: Any) -> Figure:
    lines = named.get_legend_handles_labels()
    figure.legend(*lines, ncols=4, loc="outside upper left", fontsize=10)
    bottom.set_xlabel("RL step")
    return figure


if __name__ == "__main__":
    write(rebuilt())
