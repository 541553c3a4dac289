"""The gaming alarm on the study's runs: whether it rings before a run collapses, and on how many that are healthy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adaptive_warmup.alarms import Watch, watch
from adaptive_warmup.signals import Signals
from benchmarks.experiments.stability.measures import WINDOW, wilson
from benchmarks.experiments.stability.sweep import VARIANTS
from benchmarks.experiments.stability.table import Run, Table, units
from benchmarks.rebuilding import Claim, entry


def rung(run: Run) -> list[int]:
    """The steps at which the product's own alarm rings on the run's rewards."""
    memory, steps = Watch(), []
    for step, (score, kl_reward) in enumerate(zip(run.scores, run.kl_rewards, strict=True)):
        memory, alarms = watch(memory, Signals(task_reward=float(score), kl_reward=float(kl_reward)))
        if any(alarm.name == "kl_gaming" for alarm in alarms):
            steps.append(step)
    return steps


def fell(run: Run) -> int:
    """The step from which the smoothed score of a collapsed run stays below half of its best."""
    smooth = run.outcome.to_best
    return int(np.flatnonzero(smooth >= 0.5 * smooth.max())[-1]) + WINDOW


def alarms(table: Table, sound: tuple[str, ...]) -> Iterator[Claim]:
    """Claims about the alarm, where the variants whose KL is wrong have been run."""
    for task in VARIANTS:
        fallen = [run for run in table.runs if run.task == task and run.outcome.collapsed]
        for arm in sorted({run.arm for run in fallen}, key=lambda arm: ("ours" in arm, arm)):
            yield from _rang_before(f"{task}, {arm}", [run for run in fallen if run.arm == arm])
    healthy = [run for run in table.runs if run.task in sound and not run.outcome.collapsed]
    false = [len(rung(run)) for run in healthy]
    share = sum(map(bool, false)) / len(healthy)
    yield entry("7. share of healthy runs alarmed", 0.01, share, wilson(share, units(healthy)), share <= 0.01,
                runs=len(healthy))  # fmt: skip
    steps = sum(len(run.scores) for run in healthy)
    rate = 100 * sum(false) / steps
    yield entry("7. false alarms per 100 healthy steps", 0.1, rate, [rate, rate], rate <= 0.1, runs=len(healthy))


def _rang_before(where: str, fallen: list[Run]) -> Iterator[Claim]:
    """Whether the alarm rang before these runs, all collapsed, were dead, and how long before."""
    first = {run: steps[0] for run in fallen if (steps := rung(run))}
    leads = [fell(run) - step for run, step in first.items() if step < fell(run)]
    share = len(leads) / len(fallen)
    yield entry(f"7. {where}: share of the collapses before which the alarm rang", 0.95, share,
                wilson(share, units(fallen)), share >= 0.95, runs=len(fallen))  # fmt: skip
    if leads:
        middle = float(np.median(leads))
        quartiles = [float(value) for value in np.quantile(leads, [0.25, 0.75])]
        yield entry(
            f"7. {where}: median lead of the alarm, steps", 20, middle, quartiles, middle >= 20, runs=len(leads)
        )
        yield from _stopping(where, first)


def _stopping(where: str, first: dict[Run, int]) -> Iterator[Claim]:
    """What `on_gaming="stop"` would have made of the collapsed runs, whose alarms first rang at these steps."""
    saved = [1 - step / len(run.scores) for run, step in first.items()]
    better = [float(run.scores[max(step - WINDOW, 0) : step + 1].mean()) - run.outcome.evaluation
              for run, step in first.items()]  # fmt: skip
    for what, values in (
        ("share of their steps that stopping at the alarm saves, mean", saved),
        ("task score when it rings, less that at the end, mean", better),
    ):
        bounds = [float(value) for value in np.quantile(values, [0.25, 0.75])]
        mean = float(np.mean(values))
        yield entry(f"7. {where}: {what}", 0.0, mean, bounds, bounds[0] > 0.0, runs=len(values))
