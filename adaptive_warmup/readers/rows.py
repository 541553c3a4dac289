"""What every reader yields, and where it finds the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# Where a row says its step, the surest first. `current_steps` is LLaMA-Factory's; W&B's own _step counts calls of log,
# not steps of training.
STEP_KEYS = ("train/global_step", "trainer/global_step", "global_step", "step", "Step", "current_steps", "_step")
LINE_NUMBER = "line number"  # the last resort


class Row(NamedTuple):
    """What was logged at once.

    Attributes:
        step: as it was found, and the name that it was found under.
        values: as they were found.
        place: for messages.
        anew: whether the run begins, or goes on, here: what was logged at this step and later ones is superseded.
    """

    step: object
    step_key: str
    values: Mapping[str, object]
    place: str
    anew: bool = False


def row(content: Mapping[str, object], place: str, number: int) -> Row:
    """A row from one JSON object or table line; verl's file logger keeps the values one level down, under `data`.

    What else lies deeper has its names joined by slashes, as in W&B.
    """
    inner = content.get("data")
    values = _flat(inner if isinstance(inner, Mapping) else content)
    for name in STEP_KEYS:
        for holder in (content, values):
            if holder.get(name) not in (None, ""):
                return Row(holder[name], name, values, place)
    return Row(number, LINE_NUMBER, values, place)


def _flat(values: Mapping[str, object]) -> Mapping[str, object]:
    if not any(isinstance(value, Mapping) for value in values.values()):
        return values
    found: dict[str, object] = {}
    for name, value in values.items():
        inner = {f"{name}/{key}": deep for key, deep in value.items()} if isinstance(value, Mapping) else None
        found |= _flat(inner) if inner is not None else {name: value}
    return found
