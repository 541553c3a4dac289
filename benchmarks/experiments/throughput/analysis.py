"""Rebuilds the throughput's numbers: `results/throughput/summary.json`, and the table in this folder's README."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

from benchmarks.rebuilding import RESULTS, Claim, between, entry, markdown, summary_file, write

RUNS = RESULTS / "throughput"
README = Path(__file__).parent / "README.md"
TOKENS = 64 * 32  # of the responses in an RL step
SHOWN = {"trl": "TRL 1.12", "ours": "PPOTrainer", "ours, shared": "PPOTrainer, value head on the trunk",
         "bare": "the bare work, by hand"}  # fmt: skip
Seconds = dict[tuple[int, int, str], float]  # the median RL step's CPU time, by round, epochs and side


def seconds(clock: str) -> Seconds:
    lines = (RUNS / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    return {(run["round"], run["epochs"], run["side"]): median(run[clock]) for run in map(json.loads, lines)}


def ratios(found: Seconds, epochs: int, over: str, under: str) -> list[float]:
    """One for each round."""
    rounds = sorted({turn for turn, _, _ in found})
    return [found[turn, epochs, over] / found[turn, epochs, under] for turn in rounds]


def claims(found: Seconds) -> list[Claim]:
    """Ratios of CPU time within a round: their median, least and greatest."""
    asked = (
        ("response tokens a second over TRL 1.12's, 1 epoch x 2 mini-batches", 1, "trl", "ours", 1.3, False),
        ("the same, 4 x 2", 4, "trl", "ours", 1.05, False),
        ("the same with a value head on the trunk, 1 x 2", 1, "trl", "ours, shared", 2.0, False),
        ("time over that of the bare work, 1 x 2", 1, "ours", "bare", 1.1, True),
        ("time over that of the bare work, 4 x 2", 4, "ours", "bare", 1.1, True),
    )
    made = []
    for words, epochs, over, under, target, most in asked:
        values = ratios(found, epochs, over, under)
        value = median(values)
        met = value <= target if most else value >= target
        made.append(entry(words, target, value, [min(values), max(values)], met, rounds=len(values)))
    return made


def table(cpu: Seconds, wall: Seconds) -> str:
    rows = []
    for epochs in (1, 4):
        for side, name in SHOWN.items():
            times = ratios(cpu, epochs, "trl", side)
            taken = [median([v for (_, e, s), v in found.items() if (e, s) == (epochs, side)]) for found in (cpu, wall)]
            cells = [f"{taken[0]:.2f}", f"{taken[1]:.2f}", f"{TOKENS / taken[0]:.0f}"]
            cells.append(f"{median(times):.2f} ({min(times):.2f} to {max(times):.2f})")
            rows.append((f"{epochs} x 2", name, *cells))
    names = ("epochs x mini-batches", "side", "CPU s a step", "wall s", "tokens a CPU second", "over TRL's")
    return markdown(names, rows)


def rebuilt() -> dict[Path, str]:
    """Every file that this makes, with its text."""
    cpu, wall, readme = seconds("cpu"), seconds("wall"), README.read_text(encoding="utf-8")
    return {
        RUNS / "summary.json": summary_file(claims(cpu)),
        README: between(readme, "<!-- table -->\n", "<!-- end -->", table(cpu, wall)),
    }


if __name__ == "__main__":
    write(rebuilt())
