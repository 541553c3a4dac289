"""Rebuilds the overhead's numbers: `results/overhead/summary.json`, and the table in this folder's README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.overhead.sweep import IMPORTS, PARAMETERS, PLAIN, STEPS_DONE, TOLD
from benchmarks.rebuilding import RESULTS, Claim, between, entry, markdown, summary_file, write

RUNS = RESULTS / "overhead"
README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- table -->\n", "<!-- end -->"
STEP_US = 100_000.0  # of the Trainer that the callback's cost is a share of
Rows = list[dict[str, Any]]


def measured(what: str) -> Rows:
    lines = (RUNS / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["what"] == what]


def spread(values: list[float]) -> tuple[float, list[float]]:
    """The median, and where the middle nine tenths lie."""
    low, middle, high = np.percentile(values, [5, 50, 95]).tolist()
    return middle, [low, high]


def at_most(claim: str, target: float, values: list[float]) -> Claim:
    value, interval = spread(values)
    return entry(claim, target, value, interval, value <= target, digits=2, measurements=len(values))


def summary() -> list[Claim]:
    """One entry a claim: the median, and the middle nine tenths; of few measurements these are nearly all."""
    steps, trainers = measured("step"), measured("trainer")
    claims = []
    for told in list(TOLD)[1:]:
        claims.append(at_most(f"observe + step, {told}, over LambdaLR.step", 3.0, [r[told] / r[PLAIN] for r in steps]))
        claims.append(at_most(f"observe + step, {told}, microseconds", 25.0, [row[told] for row in steps]))
    shares = [100.0 * (row["with"] - row["without"]) / STEP_US for row in trainers]
    claims.append(at_most("what the callback adds to a Trainer step of 100 ms, per cent (no probe)", 0.5, shares))
    found = {row["by"]: row["reads"] / row["steps"] for row in measured("reads")}
    told = "at a step that is told floats"
    claims.append(at_most(f"tensors read {told}, with float lrs", 0.0, [found["float lrs"]]))
    claims.append(at_most(f"lr tensors read {told}", 0.0, [found["tensor lrs"]]))
    added = found["Trainer with the callback, as on an accelerator"] - found["Trainer"]
    claims.append(
        at_most("tensors that the callback waits for at a step, as on an accelerator (no probe)", 0.0, [added])
    )
    for name in IMPORTS:
        times = [row["ms"] for row in measured("import") if row["of"] == name]
        claims.append(at_most(f"import of {name} beyond torch and transformers, ms", 50.0, times))
    held = {(row["parameters"], row["steps"]): row["bytes"] for row in measured("memory")}
    few, many = ([held[count, steps] for steps in STEPS_DONE] for count in PARAMETERS)
    claims.append(at_most(f"bytes held after {STEPS_DONE[1]} steps beyond {STEPS_DONE[0]}", 256, [few[1] - few[0]]))
    claims.append(at_most(f"bytes held at {PARAMETERS[1]} tensors a group beyond 1", 256, [many[1] - few[1]]))
    return claims


def table(claims: list[Claim]) -> str:
    """Markdown: a row for each claim."""
    rows = []
    for claim in claims:
        low, high = claim["interval"]  # type: ignore[misc]
        numbers = (f"{claim['value']:g}", f"{low:g} to {high:g}", str(claim["measurements"]), f"{claim['target']:g}")
        rows.append((str(claim["claim"]), *numbers, "yes" if claim["met"] else "**no**"))
    return markdown(("", "median", "middle 90 %", "measured", "at most", "met"), rows)


def rebuilt() -> dict[Path, str]:
    """Every file that this makes, with its text."""
    claims = summary()
    readme = README.read_text(encoding="utf-8")
    return {RUNS / "summary.json": summary_file(claims), README: between(readme, BEGIN, END, table(claims))}


if __name__ == "__main__":
    write(rebuilt())
