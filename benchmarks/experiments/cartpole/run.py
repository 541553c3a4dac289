"""PPO on CartPole in a host's own loop, a run a cell of the sweep, a line for each in `results/cartpole/<host>.jsonl`.

Resumable.

python -m benchmarks.experiments.cartpole.run HOST
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments.cartpole.sweep import PAST, ROLLOUTS, SAFE, SEEDS, Run, runs
from benchmarks.rebuilding import RESULTS


def main() -> None:
    """Run what is not yet in the results, in the sweep's order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host", choices=("sb3", "torchrl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--lrs", type=float, nargs="+", default=(PAST, SAFE), choices=(PAST, SAFE))
    parser.add_argument("--output", type=Path, default=RESULTS / "cartpole", help="another folder for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.host == "sb3":
        from benchmarks.experiments.cartpole.under_sb3 import train
    else:
        from benchmarks.experiments.cartpole.under_torchrl import train
    path = arguments.output / f"{arguments.host}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    done = {(run["arm"], run["lr"], run["seed"]) for run in known}
    for run in runs(arguments.host, tuple(arguments.seeds), tuple(arguments.lrs)):
        if (run.arm.name, run.lr, run.seed) in done:
            continue
        begin = time.monotonic()
        steps = train(run)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line(run, steps)) + "\n")
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
