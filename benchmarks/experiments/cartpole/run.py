"""Runs the sweep under one host and adds a line for each run to `results/cartpole/<host>.jsonl`."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from sweep import PAST, ROLLOUTS, SAFE, SEEDS, Run, runs

RESULTS = Path(__file__).parents[2] / "results" / "cartpole"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host", choices=("sb3", "torchrl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--lrs", type=float, nargs="+", default=(PAST, SAFE))
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.host == "sb3":
        from under_sb3 import train
    else:
        from under_torchrl import train
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / f"{arguments.host}.jsonl").open("w", encoding="utf-8") as file:
        for run in runs(arguments.host, tuple(arguments.seeds), tuple(arguments.lrs)):
            begin = time.monotonic()
            steps = train(run)
            file.write(json.dumps(line(run, steps)) + "\n")
            file.flush()
            last = steps[-1] if steps else {}
            print(f"{run.host} {run.arm.name} lr {run.lr:g} seed {run.seed}: {time.monotonic() - begin:.0f} s", last)


def line(run: Run, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """A run and what each rollout was like: the mean return, the lr of its updates, the KL that they made."""
    columns = {key: [shortened(step[key]) for step in steps] for key in ("return", "lr", "kl")}
    return {
        "host": run.host,
        "arm": run.arm.name,
        "lr": run.lr,
        "seed": run.seed,
        "ended": len(steps) == ROLLOUTS,
        "returns": columns["return"],
        "lrs": columns["lr"],
        "kls": columns["kl"],
    }


def shortened(x: float | None) -> float | None:
    return None if x is None or not math.isfinite(x) else float(f"{x:.4g}")


if __name__ == "__main__":
    main()
