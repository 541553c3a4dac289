"""Rebuilds the language-model numbers: `results/lm/summary.json`, and the table in this folder's README."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))  # run as a script, it does not find what stands beside it by its full name
from benchmarks.experiments.lm.sweep import ADAPTIVE, ARMS, FIXED, LRS, MATCHED, SEEDS  # noqa: E402

RESULTS = HERE.parents[1] / "results" / "lm"
README = HERE / "README.md"
BEGIN, END = "<!-- table -->\n", "<!-- end -->"
SAFE = LRS[0]  # every warmup, and none, bears this one
Losses = dict[tuple[str, float], float]  # the final loss by arm and peak lr


def losses_by_seed() -> list[Losses]:
    """Of the seeds of which every cell was run."""
    runs = [json.loads(line) for line in (RESULTS / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [{(run["arm"], run["lr"]): run["final"] for run in runs if run["seed"] == seed} for seed in SEEDS]
    return [losses for losses in found if len(losses) == len(ARMS) * len(LRS)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def over_lrs(losses: Losses, arm: str) -> float:
    return mean([losses[arm, lr] for lr in LRS])


def best_fixed(losses: Losses) -> float:
    """With the best warmup ratio and the best peak lr, chosen in hindsight."""
    return min(losses[arm, lr] for arm in FIXED if arm != MATCHED for lr in LRS)


def worst(losses: Losses, arm: str) -> float:
    return max(losses[arm, lr] for lr in LRS) - best_fixed(losses)


def summary(seeds: list[Losses], means: Losses) -> list[dict[str, Any]]:
    """One entry a claim: of the losses' mean over the seeds, and the least and the greatest of any one seed."""
    others = [arm for arm in ARMS if arm not in (ADAPTIVE, MATCHED)]
    return [
        _claim(
            "mean final loss over the peak lrs, less that of the best fixed ratio or RAdam",
            0.0, seeds, means, lambda losses: over_lrs(losses, ADAPTIVE) - min(over_lrs(losses, arm) for arm in others),
        ),
        _claim(
            "worst final loss over the peak lrs, less that of the best fixed run in hindsight",
            0.12, seeds, means, lambda losses: worst(losses, ADAPTIVE),
        ),
        _claim(
            f"final loss at the safe peak lr {SAFE:g}, less that of a linear warmup of 3 %",
            0.01, seeds, means, lambda losses: losses[ADAPTIVE, SAFE] - losses["ratio 0.03", SAFE],
        ),
        _claim(
            "control: mean final loss, less that of a 3 % warmup at the same mean lr",
            0.0, seeds, means, lambda losses: over_lrs(losses, ADAPTIVE) - over_lrs(losses, MATCHED),
        ),
    ]  # fmt: skip


def _claim(claim: str, target: float, seeds: list[Losses], means: Losses, figure: Any) -> dict[str, Any]:
    values, value = [figure(losses) for losses in seeds], figure(means)
    interval = [round(min(values), 4), round(max(values), 4)]
    met = value < target if target == 0.0 else value <= target
    return {"claim": claim, "target": target, "value": round(value, 4), "interval": interval,
            "seeds": len(seeds), "met": met}  # fmt: skip


def table(means: Losses, count: int) -> str:
    """Markdown: a row for each arm."""
    names = ("final loss by peak lr", *(f"{lr:g}" for lr in LRS), "mean", "worst above the best fixed run")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for arm in (*(arm for arm in ARMS if arm not in (ADAPTIVE, MATCHED)), MATCHED, ADAPTIVE):
        cells = [f"{means[arm, lr]:.3f}" for lr in LRS]
        lines.append(f"| {' | '.join((arm, *cells, f'{over_lrs(means, arm):.3f}', f'{worst(means, arm):.2f}'))} |")
    return "\n".join(lines) + f"\n\nMeans over {count} seed{'s' if count > 1 else ''}.\n"


def rebuilt() -> dict[Path, str]:
    """Every file that this makes, with its text."""
    seeds = losses_by_seed()
    if not seeds:
        return {}  # nothing is claimed before a seed is complete
    means = {key: mean([losses[key] for losses in seeds]) for key in seeds[0]}
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END, 1)[1]
    return {
        RESULTS / "summary.json": json.dumps(summary(seeds, means), indent=2) + "\n",
        README: before + BEGIN + table(means, len(seeds)) + END + after,
    }


if __name__ == "__main__":
    for path, text in rebuilt().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(HERE.parents[2]))
