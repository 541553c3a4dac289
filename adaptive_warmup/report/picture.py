"""The report as a picture, for where no browser is."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_warmup.history import Run
from adaptive_warmup.report.look import PHASE_COLOURS, WIDTHS, colour
from adaptive_warmup.report.panels import Line, Panel, Story, story
from adaptive_warmup.report.reading import PHASES
from adaptive_warmup.report.summary import in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = {"value": "-", "nominal": "-.", "ceiling": ":", "bound": "--"}
_SYMBOLS = "osDpH*"  # triangles and crosses are for marks
_MARKS = {"rise": "^", "fall": "v", "alarm": "X"}
_HATCHES = {"warmup": "//", "at_ceiling": "", "done": "--", "holding": "xx", "backing_off": "\\\\"}
_INK, _SOFT = "#1c1c1c", "#595959"
_CHARACTERS = 118  # of the words in a line


def save(path: Path, runs: Sequence[Run], title: str) -> None:
    """Draw runs of one step or more each; the format follows the suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    told = story(runs)
    words = [_wrapped(f"{name}: {in_words(run)}.") for run, name in zip(runs, told.names, strict=True)]
    top = 0.6 + 0.17 * sum(text.count("\n") + 1 for text in words)
    heights = [2.4 if panel.key == "lr" else 1.8 for panel in told.panels] + [0.35 + 0.3 * len(runs)]
    height = top + sum(heights) + 0.8 * len(heights)
    figure = Figure(figsize=(10, height), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    figure.subplots_adjust(left=0.08, right=0.98, top=1 - (top + 0.85) / height, bottom=0.5 / height, hspace=0.45)
    _head(figure, title, words, height)
    for panel, ax in zip(told.panels, axes, strict=False):
        _draw(ax, panel)
    _phases(axes[-1], told)
    _legend(figure, told, 1 - top / height)
    figure.savefig(path, dpi=150)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _CHARACTERS, subsequent_indent="    ")


def _head(figure: Figure, title: str, words: Sequence[str], height: float) -> None:
    text = _literal("\n".join(words))
    figure.text(0.02, 1 - 0.18 / height, _literal(title), fontsize=15, weight="bold", va="top", color=_INK)
    figure.text(0.02, 1 - 0.52 / height, text, fontsize=9, va="top", color=_INK, linespacing=1.35)


def _literal(text: str) -> str:
    """Of the user's, where a dollar is no formula."""
    return text.replace("$", r"\$")


def _draw(ax: Axes, panel: Panel) -> None:
    ax.set_title(panel.title, loc="left", fontsize=10.5, weight="bold", color=_INK, pad=17)
    ax.text(0, 1.025, panel.caption, transform=ax.transAxes, fontsize=8, color=_SOFT, va="bottom")
    ax.set_ylabel(panel.unit, fontsize=8, color=_SOFT)
    if panel.log:
        ax.set_yscale("log")
    for line in panel.lines:
        _curve(ax, line)
    for run, kind in {(mark.run, mark.kind) for mark in panel.marks}:
        at = [(mark.step, mark.value) for mark in panel.marks if (mark.run, mark.kind) == (run, kind)]
        steps, values = zip(*at, strict=True)
        ax.plot(steps, values, _MARKS[kind], zorder=3, color=colour(run), markeredgecolor="white",
                markersize=8 if kind == "alarm" else 7)  # fmt: skip
    if panel.window:
        ax.set_ylim(*panel.window)
    _plain(ax)


def _curve(ax: Axes, line: Line) -> None:
    (drawn,) = ax.plot(line.steps, line.values, _DASHES[line.role], color=colour(line.run), linewidth=WIDTHS[line.role])
    if line.role == "value":
        drawn.set(marker=_SYMBOLS[line.run % len(_SYMBOLS)], markersize=4)
        drawn.set_markevery(max(len(line.steps) // 15, 1))


def _phases(ax: Axes, told: Story) -> None:
    from matplotlib.patches import Patch

    seen = {span.phase for spans in told.spans for span in spans}
    for row, spans in enumerate(told.spans):
        for name in seen:
            bars = [(start, end - start) for start, end, phase in spans if phase == name]
            ax.broken_barh(bars, (-row - 0.3, 0.6), facecolor=PHASE_COLOURS[name], hatch=_HATCHES[name],
                           edgecolor="#0005", linewidth=0)  # fmt: skip
    ax.set_yticks([-row for row in range(len(told.names))], [_literal(name) for name in told.names])
    ax.set_ylim(-len(told.names) + 0.4, 0.6)
    ax.set_title("Phases", loc="left", fontsize=10.5, weight="bold", color=_INK)
    key = [Patch(facecolor=PHASE_COLOURS[name], hatch=_HATCHES[name], edgecolor="#0005", linewidth=0, label=name)
           for name in PHASES if name in seen]  # fmt: skip
    ax.legend(handles=key, loc="lower right", bbox_to_anchor=(1, 1), ncols=5, frameon=False, fontsize=8)
    ax.set_xlabel("step", fontsize=9, color=_SOFT)
    _plain(ax)


def _legend(figure: Figure, told: Story, top: float) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour(i), marker=_SYMBOLS[i % len(_SYMBOLS)], label=_literal(name))
               for i, name in enumerate(told.names)]  # fmt: skip
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.015, top), ncols=4, frameon=False, fontsize=9)


def _plain(ax: Axes) -> None:
    ax.grid(color="#e2e2e2", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8, colors=_SOFT, which="both")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#bbb")
