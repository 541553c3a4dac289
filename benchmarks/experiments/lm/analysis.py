"""Rebuilds the language-model numbers: `results/lm/summary.json`, and the table in this folder's README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adaptive_warmup.quoting import plural
from benchmarks.experiments.lm.sweep import ADAPTIVE, ARMS, FIXED, LRS, MATCHED, SEEDS
from benchmarks.rebuilding import RESULTS, Claim, between, entry, markdown, summary_file, write

RUNS = RESULTS / "lm"
README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- table -->\n", "<!-- end -->"
SAFE = LRS[0]  # every warmup, and none, bears this one
OTHERS = [arm for arm in ARMS if arm not in (ADAPTIVE, MATCHED)]
Losses = dict[tuple[str, float], float]  # the final loss by arm and peak lr


def losses_by_seed() -> list[Losses]:
    """Of the seeds of which every cell was run."""
    runs = [json.loads(line) for line in (RUNS / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
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


def above_others(losses: Losses) -> float:
    """The adaptive arm's mean over the peak lrs, less that of the best other one."""
    return over_lrs(losses, ADAPTIVE) - min(over_lrs(losses, arm) for arm in OTHERS)


def summary(seeds: list[Losses], means: Losses) -> list[Claim]:
    """One entry a claim: of the losses' mean over the seeds, and the least and the greatest of any one seed."""
    return [
        _claim(
            "mean final loss over the peak lrs, less that of the best fixed ratio or RAdam",
            0.0, seeds, means, above_others,
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


def _claim(claim: str, target: float, seeds: list[Losses], means: Losses, figure: Any) -> Claim:
    values, value = [figure(losses) for losses in seeds], figure(means)
    met = value < target if target == 0.0 else value <= target
    return entry(claim, target, value, [min(values), max(values)], met, seeds=len(seeds))


def table(seeds: list[Losses], means: Losses) -> str:
    """Markdown: a row for each arm; then what their means do not show, the seeds and the peak lrs one by one."""
    names = ("final loss by peak lr", *(f"{lr:g}" for lr in LRS), "mean", "worst above the best fixed run")
    rows = []
    for arm in (*OTHERS, MATCHED, ADAPTIVE):
        cells = [f"{means[arm, lr]:.3f}" for lr in LRS]
        rows.append((arm, *cells, f"{over_lrs(means, arm):.3f}", f"{worst(means, arm):.2f}"))
    by_seed = ", ".join(f"{above_others(losses):+.3f}" for losses in seeds)
    by_lr = ", ".join(f"{means[ADAPTIVE, lr] - min(means[arm, lr] for arm in OTHERS):+.3f}" for lr in LRS)
    words = f"Means over {plural(len(seeds), 'seed')}. The adaptive arm less the best of those above its control:\n"
    words += f"{by_seed} by seed, in the mean over the peak lrs; {by_lr} by peak lr.\n"
    return f"{markdown(names, rows)}\n{words}"


def rebuilt() -> dict[Path, str]:
    """Every file that this makes, with its text."""
    seeds = losses_by_seed()
    if not seeds:
        return {}  # nothing is claimed before a seed is complete
    means = {key: mean([losses[key] for losses in seeds]) for key in seeds[0]}
    readme = README.read_text(encoding="utf-8")
    return {
        RUNS / "summary.json": summary_file(summary(seeds, means)),
        README: between(readme, BEGIN, END, table(seeds, means)),
    }


if __name__ == "__main__":
    write(rebuilt())
