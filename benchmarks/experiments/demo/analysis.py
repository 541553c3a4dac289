"""Rebuilds the demo's numbers: `results/demo/summary.json`, and the table in the project's README."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adaptive_warmup.history import read
from adaptive_warmup.report import Outcome, outcome
from benchmarks.rebuilding import RESULTS, ROOT, Claim, between, entry, markdown, summary_file, write

RUNS = RESULTS / "demo"
README = ROOT / "README.md"
BEGIN, END = "<!-- demo table -->\n", "<!-- end -->"
PAST = 0.01  # the peak lr past what the run bears
ARMS = ("ratio 0.95", "ratio 0.285", "adaptive")


@dataclass(frozen=True)
class Comparison:
    """The three arms at one peak lr and seed, the adaptive one last."""

    lr: float
    seed: int
    arms: list[Outcome]


def comparisons() -> list[Comparison]:
    """All that was run, the peak lr that is past what the run bears first."""
    found = []
    for folder in (path for path in RUNS.iterdir() if path.is_dir()):
        runs = [read(folder / f"{arm.replace(' ', '-')}.jsonl") for arm in ARMS]
        found.append(Comparison(runs[0].about["lr"], runs[0].about["seed"], [outcome(run) for run in runs]))
    return sorted(found, key=lambda comparison: (-comparison.lr, comparison.seed))


def summary(found: list[Comparison]) -> list[Claim]:
    """One entry a claim; the interval is the least and the greatest value over the seeds."""
    past = [comparison.arms for comparison in found if comparison.lr == PAST]
    safe = [comparison.arms for comparison in found if comparison.lr < PAST]
    leads = [arms[-1].score - max(run.score for run in arms[:-1]) for arms in past]
    areas = [arms[-1].area / max(run.area for run in arms[:-1]) for arms in safe]
    collapses = [int(arms[-1].collapsed) for arms in past]
    return [
        _claim("lead of the adaptive arm's final score over the better fixed arm, lr .01", 0.0, leads, min(leads) > 0),
        _claim("collapses of the adaptive arm, lr .01", 0, collapses, not any(collapses)),
        _claim("its area over the better fixed arm's at lr 3e-4, which the run bears", 0.98, areas, min(areas) >= 0.98),
    ]


def _claim(claim: str, target: float, values: list[float] | list[int], met: bool) -> Claim:
    interval = [min(values), max(values)]
    return entry(claim, target, sum(values) / len(values), interval, met, seeds=len(values))


def table(found: list[Comparison]) -> str:
    """Markdown: a row for each peak lr, seed and arm."""
    names = ("peak lr", "seed", "warmup", "final score", "area under the score", "highest lr", "")
    rows = []
    for comparison in found:
        for run in comparison.arms:
            settings = (f"{comparison.lr:g}", str(comparison.seed), run.name)
            end = "collapsed" if run.collapsed else ""
            rows.append((*settings, f"{run.score:.3f}", f"{run.area:.3f}", f"{run.highest_lr:.1e}", end))
    return markdown(names, rows)


def rebuilt() -> dict[Path, str]:
    """Every file that this makes, with its text."""
    found = comparisons()
    readme = README.read_text(encoding="utf-8")
    return {
        RUNS / "summary.json": summary_file(summary(found)),
        README: between(readme, BEGIN, END, table(found)),
    }


if __name__ == "__main__":
    write(rebuilt())
