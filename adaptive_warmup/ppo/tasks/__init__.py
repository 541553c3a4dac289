"""Tasks for the PPO loop that a small policy can learn on a CPU in minutes: `make` finds one by name."""

from __future__ import annotations

from typing import Any

from adaptive_warmup.ppo.tasks.reasoning_gym import ReasoningGymTask
from adaptive_warmup.ppo.tasks.search import SearchTask
from adaptive_warmup.ppo.tasks.task import Demonstration, Segment, Task

__all__ = ["Demonstration", "ReasoningGymTask", "SearchTask", "Segment", "Task", "make"]


def make(name: str, **parameters: Any) -> Task:
    """The task of that name: "search", the mini Search-R1, or any task of the reasoning-gym package.

    Args:
        name: for instance "search" or "number_sorting".
        parameters: those of `SearchTask` or `ReasoningGymTask`.

    Raises:
        ImportError: where the package that the task needs is not installed, with what to install.
        ValueError: where there is no such task, with the nearest names, or a parameter is out of range.
    """
    return SearchTask(**parameters) if name == "search" else ReasoningGymTask(name, **parameters)
