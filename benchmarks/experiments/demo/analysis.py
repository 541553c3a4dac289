"""Rebuilds the demo's numbers: `results/demo/summary.json`, and the table in the project's README."""

from __future__ import annotations

import json
from pathlib import Path

from adaptive_warmup.history import read
from adaptive_warmup.report import Outcome, outcome

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results" / "demo"
README = ROOT / "README.md"
BEGIN, END = "<!-- demo table -->\n", "<!-- end -->"
ARMS = ("ratio 0.95", "ratio 0.285", "adaptive")


def outcomes() -> dict[str, list[Outcome]]:
    """The outcomes of the three arms for each seed, by the name of its folder."""
    found = {}
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        runs = [outcome(read(folder / f"{arm.replace(' ', '-')}.jsonl")) for arm in ARMS]
        found[folder.name] = runs
    return found


def summary(found: dict[str, list[Outcome]]) -> list[dict[str, object]]:
    """One entry a claim."""
    margins = [runs[-1].score - max(run.score for run in runs[:-1]) for runs in found.values()]
    claim = "least lead of the adaptive arm's final evaluation score over the better fixed arm, over the seeds"
    lead = {"claim": claim, "target": 0.0, "value": round(min(margins), 4)}
    lead |= {"interval": [round(min(margins), 4), round(max(margins), 4)], "met": min(margins) > 0}
    collapses = sum(runs[-1].collapsed for runs in found.values())
    none = {"claim": "collapses of the adaptive arm", "target": 0, "value": collapses}
    return [lead, none | {"interval": [collapses, collapses], "met": collapses == 0}]


def table(found: dict[str, list[Outcome]]) -> str:
    """Markdown: a row for each seed and arm."""
    lines = ["| seed | warmup | final score | area under the score | highest lr | |", "|---|---|---|---|---|---|"]
    for seed, runs in found.items():
        for run in runs:
            end = "collapsed" if run.collapsed else ""
            cells = (
                seed.removeprefix("seed-"),
                run.name,
                f"{run.score:.3f}",
                f"{run.area:.3f}",
                f"{run.highest_lr:.1e}",
            )
            lines.append(f"| {' | '.join(cells)} | {end} |")
    return "\n".join(lines) + "\n"


def rebuilt() -> dict[Path, str]:
    """Every file that this makes, with its text."""
    found = outcomes()
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END, 1)[1]
    return {
        RESULTS / "summary.json": json.dumps(summary(found), indent=2) + "\n",
        README: before + BEGIN + table(found) + END + after,
    }


if __name__ == "__main__":
    for path, text in rebuilt().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
