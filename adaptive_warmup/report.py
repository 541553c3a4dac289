"""What decision logs show: outcomes in numbers, in words, and as one self-contained page."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_warmup.history import Run

_SMOOTH = 8  # steps of the mean by which a score is judged
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")  # Okabe and Ito: told apart by all
_GREY = "#808080"  # reads on white and on black
_PANELS = (
    ("task_reward", "task reward", "mean score of the step's rollout, without the KL"),
    ("lr", "learning rate", "that the step used; dotted: what the run is estimated to bear"),
    ("kl", "policy KL", "nats per token, the policy before the step against after it; dotted: the target"),
    ("kl_reward", "KL reward", "mean over sequences, signed; above zero the KL pays the policy"),
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        name: the arm's.
        steps: done.
        score: of the final evaluation, or NaN where the run did not come to it.
        area: mean task reward over the steps.
        collapsed: the last scores are below half of the best, both as means over 8 steps.
        last_lr, highest_lr: that the run used.
    """

    name: str
    steps: int
    score: float
    area: float
    collapsed: bool
    last_lr: float
    highest_lr: float

    def row(self) -> tuple[str, ...]:
        """For a table."""
        score = "-" if math.isnan(self.score) else f"{self.score:.3f}"
        collapsed = "collapsed" if self.collapsed else "no"
        return self.name, str(self.steps), score, f"{self.area:.3f}", collapsed, _lr(self.last_lr), _lr(self.highest_lr)


COLUMNS = ("warmup", "steps", "final score", "area", "collapsed", "last lr", "highest lr")


def outcome(run: Run) -> Outcome:
    """The outcome of a run of one step or more."""
    rewards = [r for r in run.signal("task_reward") if not math.isnan(r)]
    lrs = [step["lr"] for step in run.steps]
    means = [_mean(rewards[max(i - _SMOOTH + 1, 0) : i + 1]) for i in range(len(rewards))]
    score = run.metric("evaluation")[-1]
    end = min(x for x in (score, means[-1] if means else math.nan, math.inf) if not math.isnan(x))
    collapsed = bool(means) and end < 0.5 * max(means)
    return Outcome(_name(run), len(lrs), score, _mean(rewards), collapsed, lrs[-1], max(lrs))


def in_words(run: Run) -> str:
    """What happened to the warmup, in a sentence or two."""
    nominal = run.config.warmup_steps
    if run.config.law == "linear":
        return f"fixed linear warmup of {nominal} steps; " + _lr_words(run)
    warm = next((step["step"] + 2 for step in run.steps if step["next"] == 1.0), None)
    words = f"nominal {nominal} steps; "
    words += f"at the peak after {warm}; " if warm else "never at the peak; "
    return words + _lr_words(run) + _bears_words(run) + _alarm_words(run)


def write(path: Path | str, runs: list[Run], title: str = "adaptive-warmup") -> None:
    """Write one page on all runs that opens without a network, in light and dark.

    Raises:
        ValueError: no run has a step.
    """
    runs = [run for run in runs if run.steps]
    if not runs:
        raise ValueError("the logs hold no step yet: nothing to draw.")
    figure = _figure(runs).to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False})
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in outcome(run).row())}</tr>" for run in runs
    )
    words = "".join(f"<li><b>{html.escape(_name(run))}</b>: {html.escape(in_words(run))}</li>" for run in runs)
    page = _PAGE.format(title=html.escape(title), about=html.escape(_about(runs[0])), head=head, rows=rows, words=words)
    Path(path).write_text(page.replace("FIGURE", figure), encoding="utf-8")


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 1.5rem auto; padding: 0 1rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #8884; white-space: nowrap; }}
small {{ color: #808080; }}
</style></head><body>
<h1>{title}</h1><p>{about}</p>
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>
<ul>{words}</ul>
FIGURE
<p><small>Triangles mark decisions that changed the phase, crosses the onset of alarms: hover to read why.
final score: on evaluation problems after the last step. area: mean task reward over the steps.
collapsed: ended below half of its best (means over 8 steps, or the final score).</small></p>
</body></html>
"""


def _figure(runs: list[Run]) -> Any:
    from plotly.subplots import make_subplots

    titles = [f"<b>{name}</b> <span style='font-size:12px'>{caption}</span>" for _, name, caption in _PANELS]
    figure = make_subplots(rows=len(_PANELS), shared_xaxes=True, vertical_spacing=0.05, subplot_titles=titles)
    for run, colour in zip(runs, _COLOURS * len(runs), strict=False):
        for row, (what, _, _) in enumerate(_PANELS, start=1):
            figure.add_scatter(row=row, col=1, **_line(run, what, colour, legend=row == 1))
        figure.add_scatter(row=2, col=1, **_ceiling(run, colour))
        figure.add_scatter(row=2, col=1, **_marks(run, colour))
    adaptive = [run for run in runs if run.config.law != "linear"]
    if adaptive:
        figure.add_hline(adaptive[0].config.target_kl, row=3, col=1, line={"dash": "dot", "color": _GREY})
    figure.add_hline(0.0, row=4, col=1, line={"dash": "dot", "color": _GREY})
    figure.update_yaxes(type="log", exponentformat="power", dtick=1, row=2)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1, row=3, range=_kl_range(runs))
    figure.update_xaxes(title_text="RL step", row=len(_PANELS))
    figure.update_xaxes(gridcolor="#8883", zeroline=False, rangemode="tozero")
    figure.update_yaxes(gridcolor="#8883", zeroline=False)
    figure.update_annotations(x=0.0, xanchor="left")
    figure.update_layout(
        height=1000, margin={"l": 60, "r": 10, "t": 70, "b": 50}, hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"color": _GREY},
        legend={"orientation": "h", "y": 1.03, "yanchor": "bottom", "x": 0}, modebar={"bgcolor": "rgba(0,0,0,0)"},
    )  # fmt: skip
    return figure


def _kl_range(runs: list[Run]) -> list[float]:
    """In powers of ten: a thousandth of the target at least; a dead policy's KL falls for ever and tells nothing."""
    target = runs[0].config.target_kl
    values = [kl for run in runs for kl in run.signal("kl") if target < kl < math.inf]
    return [math.log10(target) - 3, math.log10(max(values, default=10 * target)) + 0.5]


def _line(run: Run, what: str, colour: str, *, legend: bool) -> dict[str, Any]:
    values = [step["lr"] for step in run.steps] if what == "lr" else run.signal(what)
    hover = "step %{x}: %{y:.3g}<extra>" + html.escape(_name(run)) + "</extra>"
    name, steps = _name(run), [step["step"] for step in run.steps]
    line = {"color": colour, "width": 2 if what in ("lr", "task_reward") else 1}
    return {"x": steps, "y": values, "mode": "lines", "name": name, "legendgroup": name, "line": line,
            "showlegend": legend, "hovertemplate": hover}  # fmt: skip


def _ceiling(run: Run, colour: str) -> dict[str, Any]:
    """What the run is estimated to bear, as an lr at the schedule of the step."""
    points = [(step["step"], _bears(step, run)) for step in run.steps if "ceiling" in step]
    return {"x": [x for x, _ in points], "y": [y for _, y in points], "mode": "lines", "showlegend": False,
            "legendgroup": _name(run), "line": {"color": colour, "width": 1, "dash": "dot"}, "opacity": 0.7,
            "hovertemplate": "step %{x}: bears %{y:.3g}<extra></extra>"}  # fmt: skip


def _bears(step: dict[str, Any], run: Run) -> float:
    factor = _factor_used(step, run)
    return float(step["ceiling"] * step["lr"] / factor)


def _factor_used(step: dict[str, Any], run: Run) -> float:
    index = step["step"] - run.steps[0]["step"]
    return float(run.steps[index - 1]["next"]) if index > 0 else 1.0 / run.config.warmup_steps


def _marks(run: Run, colour: str) -> dict[str, Any]:
    """The steps at which the phase changed or an alarm set in, with the reasons."""
    chosen, texts, symbols = [], [], []
    phase, rung = "warmup", set[str]()
    for step in run.steps:
        alarms = dict(step.get("alarms", []))
        new = [f"{name}: {message}" for name, message in alarms.items() if name not in rung]
        if new or step["phase"] != phase:
            chosen.append(step)
            texts.append("<br>".join(_wrapped(line) for line in (f"<b>{step['phase']}</b>", *step["reasons"], *new)))
            symbols.append("x" if new else "triangle-down" if step["phase"] == "backing_off" else "triangle-up")
        phase, rung = step["phase"], set(alarms)
    return {"x": [step["step"] for step in chosen], "y": [step["lr"] for step in chosen], "text": texts,
            "mode": "markers", "showlegend": False, "legendgroup": _name(run), "name": _name(run),
            "marker": {"color": colour, "symbol": symbols, "size": 8},
            "hovertemplate": "step %{x}, lr %{y:.3g}<br>%{text}<extra></extra>"}  # fmt: skip


def _wrapped(text: str, width: int = 90) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f"{word} "
    return "<br>".join(line.strip() for line in lines)


def _lr_words(run: Run) -> str:
    lrs = [step["lr"] for step in run.steps]
    tail = lrs[-_SMOOTH:]
    return f"lr up to {_lr(max(lrs))}, around {_lr(_mean(tail))} at the end"


def _bears_words(run: Run) -> str:
    """What the run bears by its own KL, where that kept it below the peak at the end."""
    tail = [step for step in run.steps[-_SMOOTH:] if step.get("ceiling", 1.0) < 1.0]
    if len(tail) < min(_SMOOTH, len(run.steps)):
        return ""
    shares, lrs = [step["ceiling"] for step in tail], [_bears(step, run) for step in tail]
    return f": this run bears about {_lr(_mean(lrs))}, {100 * _mean(shares):.2g} % of the peak"


def _alarm_words(run: Run) -> str:
    first: dict[str, int] = {}
    for step in run.steps:
        for name, _ in step.get("alarms", []):
            first.setdefault(name, step["step"])
    return "".join(f"; {name} first at step {step}" for name, step in first.items())


def _about(run: Run) -> str:
    return ", ".join(f"{key} {value}" for key, value in run.about.items() if key != "arm")


def _name(run: Run) -> str:
    return str(run.about.get("arm", run.config.law))


def _lr(value: float) -> str:
    return f"{value:.2e}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
