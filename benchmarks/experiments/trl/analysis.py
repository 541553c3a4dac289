"""Rebuilds the numbers of TRL's trainers: `results/trl/summary.json`, and the table in this folder's README."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.experiments.trl.sweep import ADAPTIVE, ARMS, FIXED, RUINOUS, SAFE
from benchmarks.rebuilding import RESULTS, Claim, between, entry, markdown, summary_file, write

RUNS = RESULTS / "trl"
README = Path(__file__).parent / "README.md"
LAST = 10  # steps that count as the end
Rewards = dict[tuple[str, str, float], list[list[float]]]  # of every seed, by trainer, arm and peak lr


def rewards() -> Rewards:
    found: Rewards = {}
    for line in (RUNS / "runs.jsonl").read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        found.setdefault((run["trainer"], run["arm"], run["lr"]), []).append(run["rewards"])
    return found


def area(run: list[float]) -> float:
    return sum(run) / len(run)


def end(run: list[float]) -> float:
    return sum(run[-LAST:]) / LAST


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def claims(found: Rewards) -> list[Claim]:
    """Against the best fixed ratio of the same trainer and peak, by its mean over the seeds."""
    made = []
    for trainer, lr in [(trainer, lr) for trainer, lrs in RUINOUS.items() for lr in lrs]:
        ours = [end(run) for run in found[trainer, ADAPTIVE, lr]]
        best = max(mean([end(run) for run in found[trainer, arm, lr]]) for arm in FIXED)
        leads = [value - best for value in ours]
        made.append(entry(f"{trainer} at lr {lr:g}: reward at the end, less that of the best fixed ratio", 0.0,
                          mean(leads), [min(leads), max(leads)], mean(leads) >= 0.0, seeds=len(ours)))  # fmt: skip
    for trainer, lr in SAFE.items():
        ours = [area(run) for run in found[trainer, ADAPTIVE, lr]]
        best = max(mean([area(run) for run in found[trainer, arm, lr]]) for arm in FIXED)
        shares = [value / best for value in ours]
        made.append(entry(f"{trainer} at lr {lr:g}, which it bears: area over that of the best fixed ratio", 0.98,
                          mean(shares), [min(shares), max(shares)], mean(shares) >= 0.98, seeds=len(ours)))  # fmt: skip
    return made


def table(found: Rewards) -> str:
    rows = []
    for trainer in RUINOUS:
        for lr in (*RUINOUS[trainer], SAFE[trainer]):
            for arm in ARMS:
                runs = found[trainer, arm, lr]
                ends = ", ".join(f"{end(run):.2f}" for run in runs)
                rows.append((trainer, f"{lr:g}", arm, f"{mean([area(run) for run in runs]):.3f}", ends))
    return markdown(("trainer", "peak lr", "warmup", "area, mean", "reward at the end, each seed"), rows)


def rebuilt() -> dict[Path, str]:
    """Every file that this makes, with its text."""
    found, readme = rewards(), README.read_text(encoding="utf-8")
    return {
        RUNS / "summary.json": summary_file(claims(found)),
        README: between(readme, "<!-- table -->\n", "<!-- end -->", table(found)),
    }


if __name__ == "__main__":
    write(rebuilt())
