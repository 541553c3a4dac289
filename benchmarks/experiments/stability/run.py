"""Runs the sweep in slices whose results are kept as they come; what is there already is not run again.

    python -m benchmarks.experiments.stability.run --jobs 2 --minutes 30

Beyond one machine: start a Ray cluster on machines that share this checkout, set RAY_ADDRESS to it, then add
`--backend ray --jobs N` (joblib hands the slices to it). Without a cluster Ray starts on this machine.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from benchmarks.experiments.stability.arms import ARMS, OPTIMIZERS
from benchmarks.experiments.stability.driver import Plan
from benchmarks.experiments.stability.engine import Runs
from benchmarks.experiments.stability.network import SIZES
from benchmarks.experiments.stability.references import references, shape_of
from benchmarks.experiments.stability.sweep import (
    CORE,
    HELD_OUT_TASKS,
    REPORTING,
    STEPS,
    TUNING,
    TUNING_TASKS,
    VARIANTS,
    Slice,
    around_edge,
    slices,
)
from benchmarks.experiments.stability.table import EDGE, LARGE, RUNS
from benchmarks.experiments.stability.worlds import world

KEPT = ("task_reward", "kl", "kl_reward", "grad_norm", "reference_kl")


def run(
    parts: Sequence[Slice], steps: int = STEPS, progress: bool = True, device: str = "cpu"
) -> list[dict[str, np.ndarray]]:
    """All runs of slices that can be stacked, one for each arm, peak lr and seed.

    Returns:
        For each slice arrays (runs, steps), and what tells the runs apart.
    """
    torch.set_num_threads(1)
    first, made = parts[0], world(parts[0].task)
    starts = references(first.task, first.size)
    rows = [(part, peak, seed) for part in parts for peak in part.peaks for seed in part.seeds]
    beginnings, seeds = [starts[seed % len(starts)] for *_, seed in rows], [seed for *_, seed in rows]
    drivers = [
        ARMS[part.arm](Plan(peak, steps, part.epochs, part.task, seed, made.kl_coef)) for part, peak, seed in rows
    ]
    clips = {row: driver.clip for row, driver in enumerate(drivers) if driver.clip}
    optimizer, shape = _optimizer(first), shape_of(made, first.size)
    runs = Runs(made, shape, beginnings, seeds, first.epochs, optimizer, clips, device)
    series: dict[str, list[np.ndarray]] = {name: [] for name in (*KEPT, "lr")}
    name = first.name if len(parts) == 1 else f"{first.name} and {len(parts) - 1} more"
    for _ in tqdm(range(steps), name, unit="step", disable=not progress, mininterval=5):
        rates = [driver.rate for driver in drivers]
        metrics = runs.step(rates)
        for row, driver in enumerate(drivers):
            driver.step({name: float(values[row]) for name, values in metrics.items()})
            if driver.kl_coef is not None:
                runs.kl_coef_R[row] = driver.kl_coef
        for name in KEPT:
            series[name].append(metrics[name])
        series["lr"].append(np.array(rates))
    peaks_R, seeds_R = (np.array([row[column] for row in rows]) for column in (1, 2))
    told = {"peak": peaks_R, "seed": seeds_R, "evaluation": runs.evaluate()}
    told |= {name: np.stack(values, 1) for name, values in series.items()}
    owners = np.array([parts.index(part) for part, *_ in rows])
    return [{name: values[owners == number] for name, values in told.items()} for number in range(len(parts))]


def stacks(parts: Iterable[Slice], most: int) -> Iterator[list[Slice]]:
    """The slices in stacks of up to `most` that differ in nothing but the arm, each as soon as it is full."""
    alike: dict[object, list[Slice]] = defaultdict(list)
    for part in parts:
        stack = alike[part.seeds, part.task, part.epochs, part.peaks, part.size, _optimizer(part)]
        stack.append(part)
        if len(stack) == most:
            yield stack.copy()
            stack.clear()
    yield from filter(None, alike.values())


def _optimizer(part: Slice) -> type[torch.optim.Optimizer]:
    return OPTIMIZERS.get(part.arm, torch.optim.AdamW)


def keep(part: Slice, found: dict[str, np.ndarray], folder: Path, device: str = "cpu") -> None:
    """Half precision is enough for the series; lr and kl, which span decades, are kept as logarithms."""
    path = folder / f"{part.name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with np.errstate(divide="ignore"):
        logs = {f"ln_{name}": np.log(found.pop(name)).astype(np.float16) for name in ("lr", "kl")}
    halves = {name: found[name].astype(np.float16) for name in KEPT if name in found}
    about = {"commit": np.array(_commit()), "task": np.array(part.task), "arm": np.array(part.arm)}
    about |= {"device": np.array(torch.cuda.get_device_name() if "cuda" in device else device)}
    aside = path.with_suffix(".tmp.npz")
    np.savez_compressed(aside, **{**found, **halves, **logs, **about, "epochs": np.array(part.epochs)})
    aside.rename(path)


def _commit() -> str:
    """Of this checkout; where there is only a copy without git, what GIT_COMMIT says."""
    told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return told.stdout.strip() or os.environ.get("GIT_COMMIT", "unknown")


def sweep(
    parts: Iterable[Slice],
    folder: Path,
    backend: str = "loky",
    jobs: int = 1,
    stacked: int = 1,
    until: float = math.inf,
    **settings: Any,
) -> None:
    """Run what `folder` has not yet, `jobs` stacks of slices at once, and start none after the time `until`.

    Each slice is kept by the process that has run it, so on several machines `folder` must be one that they share.

    Args:
        backend: joblib's.
        stacked: how many slices run as one, at most.
        settings: what else `run` takes.
    """
    if backend == "ray":
        from ray.util.joblib import register_ray

        register_ray()
    folder = folder.resolve()
    todo = [part for part in parts if not (folder / f"{part.name}.npz").is_file()]
    with parallel_config(backend, n_jobs=jobs):
        Parallel()(delayed(_do)(each, folder, until, jobs, settings) for each in stacks(todo, stacked))


def _do(parts: list[Slice], folder: Path, until: float, jobs: int, settings: dict[str, Any]) -> None:
    started, device = time.time(), settings.get("device", "cpu")
    if started >= until:
        return
    if "cuda" in device:  # else what one process keeps for later leaves the others without
        torch.cuda.set_per_process_memory_fraction(0.9 / max(jobs, 1))
    for part, found in zip(parts, run(parts, **settings), strict=True):
        keep(part, found, folder, device)
    used = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if "cuda" in device else ""
    print(f"{', '.join(part.name for part in parts)}: {time.time() - started:.0f} s{used}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = (*TUNING_TASKS, *HELD_OUT_TASKS, *VARIANTS)
    parser.add_argument("--tasks", nargs="+", default=known, choices=known, metavar="TASK", help=", ".join(known))
    parser.add_argument("--arms", nargs="+", default=CORE, choices=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--epochs", type=int, default=1, help="PPO epochs in each RL step")
    parser.add_argument("--seeds", type=int, default=len(REPORTING), help="how many of the reporting seeds")
    parser.add_argument("--tuning", action="store_true", help="the tuning seeds instead, tuning tasks only")
    parser.add_argument("--edge", action="store_true", help="seeds 8 to 15 at the two peaks around the edge")
    parser.add_argument("--size", default="small", choices=SIZES, help="of the policies")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--stack", type=int, default=1, help="arms that one process runs at once: on a GPU 4, say")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no slice after so many minutes")
    parser.add_argument("--backend", default="loky", choices=("loky", "ray"), help="where joblib runs the slices")
    parser.add_argument("--device", default="cpu", help="torch's name of it, such as cuda")
    parser.add_argument("--results", type=Path, help="folder to keep the runs in, if not that of the study's results")
    args = parser.parse_args(argv)
    if args.backend == "ray" and args.jobs == 1:  # joblib hands nothing to a backend for one job
        parser.error("--backend ray --jobs 1 would run here: give --jobs 2 or more, -1 for all CPUs of the cluster")
    seeds = TUNING if args.tuning else range(args.seeds)
    if args.tuning and set(args.tasks) - set(TUNING_TASKS):
        args.tasks = TUNING_TASKS
    tasks, arms = tuple(args.tasks), tuple(args.arms)
    parts = around_edge(tasks, arms, args.epochs) if args.edge else slices(tasks, arms, seeds, args.epochs, args.size)
    if args.edge and args.size != "small":
        parser.error(f"--edge --size {args.size}: the further runs around the edge are of the small policies")
    folder = args.results or (EDGE if args.edge else RUNS if args.size == "small" else LARGE)
    until = time.time() + 60 * args.minutes
    sweep(parts, folder, args.backend, args.jobs, args.stack, until, device=args.device)


if __name__ == "__main__":
    main()
