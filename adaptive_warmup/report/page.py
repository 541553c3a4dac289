"""The report as one HTML page: words, tables and interactive plots, nothing loaded from anywhere."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from adaptive_warmup.history import Run
from adaptive_warmup.report import reading
from adaptive_warmup.report.look import PHASE_COLOURS, WIDTHS, colour
from adaptive_warmup.report.panels import Panel, Story, story
from adaptive_warmup.report.reading import PHASES
from adaptive_warmup.report.summary import COLUMNS, MEANING, in_words, outcome, short

_MOST_EVENTS = 200  # listed for a run; the plots have them all
_DASHES = {"value": "solid", "nominal": "dashdot", "ceiling": "dot", "bound": "dash"}
_PATTERNS = {"warmup": "/", "at_ceiling": "", "done": "-", "holding": "x", "backing_off": "\\"}
_SYMBOLS = (("circle", "●"), ("square", "■"), ("diamond", "◆"), ("pentagon", "⬟"), ("hexagon", "⬢"), ("star", "★"))
_NUMBER = re.compile(r"[\d.]+e-\d+")  # which a browser would break at its sign


def page(runs: Sequence[Run], title: str) -> str:
    """The page on runs of one step or more each."""
    from plotly.offline import get_plotlyjs

    told = story(runs)
    parts = {
        "title": escape(title),
        "about": escape(reading.in_common(runs)),
        "words": "".join(_words(run, name) for run, name in zip(runs, told.names, strict=True)),
        "table": _table(runs, told.names),
        "meaning": escape(MEANING),
        "runs": "".join(_switch(i, name) for i, name in enumerate(told.names)),
        "figures": "".join(_figure(panel, told.names) for panel in told.panels),
        "phases": "".join(_phase_key(name, told) for name in PHASES),
        "events": "".join(_events(run, name) for run, name in zip(runs, told.names, strict=True)),
        "data": _script_json(_data(told)),
        "plotly": get_plotlyjs(),
    }
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _words(run: Run, name: str) -> str:
    words = _NUMBER.sub(r'<span class="number">\g<0></span>', escape(in_words(run)))
    return f"<li><b>{escape(name)}</b>: {words}.</li>"


def _table(runs: Sequence[Run], names: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS)
    rows = [outcome(run, name).row() for run, name in zip(runs, names, strict=True)]
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"


def _switch(i: int, name: str) -> str:
    line = f'<b class="swatch" style="color:{colour(i)}" aria-hidden="true">━{_SYMBOLS[i % len(_SYMBOLS)][1]}━</b>'
    return f'<label><input type="checkbox" checked data-run="{i}">{line}{escape(name)}</label>'


def _figure(panel: Panel, names: Sequence[str]) -> str:
    scale = ", log scale" if panel.log else ""
    return (
        f'<figure><figcaption><h2>{escape(panel.title)} <small>{escape(panel.unit)}{scale}</small></h2>'
        f'<p>{escape(panel.caption)}</p></figcaption>'
        f'<div class="plot" id="{panel.key}" role="img" aria-label="{escape(_spoken(panel, names))}"></div></figure>'
    )  # fmt: skip


def _spoken(panel: Panel, names: Sequence[str]) -> str:
    """The panel for those who cannot see it."""
    said = [f"{panel.title} over the steps, {panel.unit}."]
    for line in panel.lines:
        values = [value for value in line.values if not math.isnan(value)]
        if line.role == "value" and values:
            said.append(f"{names[line.run]}: first {values[0]:.2g}, last {values[-1]:.2g},"
                        f" least {min(values):.2g}, greatest {max(values):.2g}.")  # fmt: skip
    return " ".join(said)


def _phase_key(name: str, told: Story) -> str:
    if not any(span.phase == name for spans in told.spans for span in spans):
        return ""
    return f'<li><i style="background:{PHASE_COLOURS[name]}"></i><b>{name}</b> {escape(PHASES[name])}</li>'


def _events(run: Run, name: str) -> str:
    """The decisive steps as a list: for print, and for those who do not hover."""
    found = reading.events(run)
    items = []
    for event in found[:_MOST_EVENTS]:
        alarms = "".join(f"<br><strong>{escape(alarm)}</strong>: {escape(message)}" for alarm, message in event.alarms)
        lr = short(run.steps[event.row]["lr"])
        items.append(f"<li>step {event.step}, lr {lr}, {event.phase}: {escape('; '.join(event.reasons))}{alarms}</li>")
    rest = f"<p>and {len(found) - _MOST_EVENTS} more</p>" if len(found) > _MOST_EVENTS else ""
    return (f"<details><summary>{escape(name)}, changes of phase and alarms: {len(found)}</summary>"
            f"<ul>{''.join(items)}</ul>{rest}</details>")  # fmt: skip


def _data(told: Story) -> dict[str, Any]:
    """What the page's script draws."""
    plain = asdict(told)
    first = min(spans[0].start for spans in told.spans)
    end = max(spans[-1].end for spans in told.spans)
    room = 0.02 * (end - first)
    return plain | {
        "colours": [colour(i) for i in range(len(told.names))],
        "symbols": [_SYMBOLS[i % len(_SYMBOLS)][0] for i in range(len(told.names))],
        "dashes": _DASHES,
        "widths": WIDTHS,
        "phases": {name: [PHASE_COLOURS[name], _PATTERNS[name], words] for name, words in PHASES.items()},
        "range": [first - room, end - 1 + room],
    }


def _script_json(data: Any) -> str:
    """JSON that may stand in a script element: no NaN, and nothing that ends the element."""
    return json.dumps(_without_nan(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _without_nan(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_nan(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
