"""Rebuilds CartPole's numbers: `results/cartpole/summary.json`, and the table in this folder's README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.rebuilding import RESULTS, Claim, between, entry, markdown, summary_file, write

RUNS = RESULTS / "cartpole"
README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- table -->\n", "<!-- end -->"
LAST = 6  # rollouts, a quarter of the run
PAST, SAFE = 0.1, 0.003


def runs() -> list[dict[str, Any]]:
    """All that was run, in the order of the sweep."""
    files = [RUNS / f"{host}.jsonl" for host in ("sb3", "torchrl")]
    return [json.loads(text) for file in files for text in file.read_text(encoding="utf-8").splitlines()]


def score(run: dict[str, Any], last: int | None = None) -> float:
    """Mean return over the rollouts, or the last ones; a run that broke off scores as if it had fallen over at once."""
    returns = [value for value in run["returns"][-last if last else None :] if value is not None]
    return sum(returns) / len(returns) if run["ended"] and returns else 0.0


def scores(found: list[dict[str, Any]], host: str, arm: str, lr: float, last: int | None) -> list[float]:
    """One a seed."""
    return [score(run, last) for run in found if (run["host"], run["arm"], run["lr"]) == (host, arm, lr)]


def summary(found: list[dict[str, Any]]) -> list[Claim]:
    """One entry a claim; the interval is the least and the greatest value over the seeds."""
    claims = []
    for host in ("sb3", "torchrl"):
        past = [scores(found, host, arm, PAST, LAST) for arm in ("adaptive", "plain")]
        leads = [ours - theirs for ours, theirs in zip(*past, strict=True)]
        claims.append(_claim(f"{host}: lead of the adaptive arm's final return over plain, lr .1", 0.0, leads))
        areas = [scores(found, host, arm, SAFE, None) for arm in ("adaptive", "plain")]
        ratios = [ours / theirs for ours, theirs in zip(*areas, strict=True)]
        claims.append(_claim(f"{host}: its area over plain's at lr .003, which plain bears", 0.98, ratios))
    for rule in ("KLAdaptiveLR", "KLAdaptiveLR, low start"):
        both = [scores(found, "torchrl", arm, PAST, None) for arm in ("adaptive", rule)]
        leads = [ours - theirs for ours, theirs in zip(*both, strict=True)]
        claims.append(_claim(f"torchrl: lead of the adaptive arm's area over that of {rule}, lr .1", 0.0, leads))
    return claims


def _claim(claim: str, target: float, values: list[float]) -> Claim:
    interval, mean = [min(values), max(values)], sum(values) / len(values)
    return entry(claim, target, mean, interval, min(values) >= target, digits=3, seeds=len(values))


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: a row for each host, peak lr and arm; each cell all seeds."""
    names = ("host", "peak lr", "arm", "final return", "area under the return", "last lr")
    rows = []
    for host, lr, arm in dict.fromkeys((run["host"], run["lr"], run["arm"]) for run in found):
        final, area = (scores(found, host, arm, lr, last) for last in (LAST, None))
        lrs = [run["lrs"][-1] for run in found if (run["host"], run["arm"], run["lr"]) == (host, arm, lr)]
        rows.append((host, f"{lr:g}", arm, _each(final, ".0f"), _each(area, ".0f"), _each(lrs, ".2g")))
    return markdown(names, rows)


def _each(values: list[float], form: str) -> str:
    return ", ".join(f"{value:{form}}" for value in values)


def rebuilt() -> dict[Path, str]:
    """Every file that this makes, with its text."""
    found = runs()
    readme = README.read_text(encoding="utf-8")
    return {
        RUNS / "summary.json": summary_file(summary(found)),
        README: between(readme, BEGIN, END, table(found)),
    }


if __name__ == "__main__":
    write(rebuilt())
