"""The sweep, as data. A slice is what runs at once: one task, one arm, every peak lr, a block of seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

STEPS = 200
PEAKS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
BLOCK = 4  # seeds in a slice; reference policy number seed % 2

REPORTING = range(0, 8)
TUNING = range(900, 904)  # constants are chosen on these, and on TUNING_TASKS, only

TUNING_TASKS = ("search", "number_sorting")
HELD_OUT_TASKS = ("spell_backward", "chain_sum")  # written down before their first run; nothing is chosen on them
VARIANTS = ("search_leak", "sorting_barred")  # in which tokens count that the policy did not sample

# Eight more seeds at the two peaks around each task's edge, which is the same at one epoch and at four; kept apart from
# the grid's, where all cells have as many.
AROUND_EDGE = {
    "search": (1e-3, 3e-3),
    "number_sorting": (3e-4, 1e-3),
    "spell_backward": (3e-3, 1e-2),
    "chain_sum": (3e-4, 1e-3),
}
MORE = range(8, 16)

CORE = ("ours", "ratio 0", "ratio 0.285", "ratio 0.95", "rsl_rl", "KLAdaptiveLR", "ratio 0.03", "ratio 0.1")


@dataclass(frozen=True)
class Slice:
    """Runs that share a task, an arm, the number of PPO epochs and the policy's size: one for each peak and seed."""

    task: str
    arm: str
    seeds: tuple[int, ...]
    epochs: int = 1
    peaks: tuple[float, ...] = PEAKS
    size: str = "small"

    @property
    def name(self) -> str:
        """Of its file."""
        arm = self.arm.replace(",", "").replace(" ", "-")
        return f"{self.task}/{arm}-epochs{self.epochs}-seeds{self.seeds[0]}-{self.seeds[-1]}"


def slices(
    tasks: tuple[str, ...], arms: tuple[str, ...], seeds: range, epochs: int = 1, size: str = "small"
) -> Iterator[Slice]:
    """Seeds change slowest, so that what is done first is a small whole table."""
    for first in range(seeds.start, seeds.stop, BLOCK):
        for task in tasks:
            for arm in arms:
                yield Slice(task, arm, tuple(range(first, min(first + BLOCK, seeds.stop))), epochs, size=size)


def around_edge(tasks: tuple[str, ...], arms: tuple[str, ...], epochs: int = 1) -> Iterator[Slice]:
    """The further runs."""
    for arm in arms:
        for task in tasks:
            if task in AROUND_EDGE:
                yield Slice(task, arm, tuple(MORE), epochs, AROUND_EDGE[task])
