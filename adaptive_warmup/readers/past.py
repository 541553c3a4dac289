"""A run of the past as its signals in the order of the steps, put together from what each key said."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adaptive_warmup.readers.keys import AHEAD, DERIVED, FACTOR, OWN_KL, Derived, Key
from adaptive_warmup.signals import KLSource

_Ordered: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.float64]]"


class Column(NamedTuple):
    """A signal over the steps of a run; `given` tells a NaN that was logged from a step that logged nothing."""

    values: NDArray[np.float64]
    given: NDArray[np.bool_]

    def at(self, index: int) -> float | None:
        """The value at a row, None where there is none."""
        return float(self.values[index]) if self.given[index] else None


class Taken(NamedTuple):
    """What a signal is taken from, as what, and on whose word; `names` are the keys that `key` is made of."""

    signal: str
    key: str
    what: str
    host: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Past:
    """A run of the past, one row a step that was logged, in the order of the steps.

    Attributes:
        steps: their numbers in the log.
        columns: by signal, `lr` (that the step used) among them.
        kl_sources: per row how its `kl` was measured: each the same, but in a decision log.
        taken: which key each signal is from.
        unused: keys that look as if they could serve, and why they are not taken.
    """

    steps: NDArray[np.int64]
    columns: Mapping[str, Column]
    kl_sources: Sequence[KLSource]
    taken: tuple[Taken, ...]
    unused: Mapping[str, str]

    @property
    def every(self) -> int:
        """How many steps lie between two rows, usually."""
        return max(int(np.median(np.diff(self.steps))), 1) if len(self.steps) > 1 else 1


@dataclass
class Series:
    """What one key said, in the order of the file: 16 bytes a number."""

    name: str
    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    @property
    def last(self) -> float:
        """The step that it spoke of last; before the first, minus infinity."""
        return self.steps[-1] if self.steps else -math.inf

    def has(self, step: int) -> bool:
        """Whether it has said something of a step, as long as it went forward."""
        at = bisect_left(self.steps, step)
        return at < len(self.steps) and self.steps[at] == step

    def rewind(self, step: int) -> int:
        """Drop what was said last of `step` and later ones; how much that was."""
        before = len(self.steps)
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        return before - len(self.steps)

    def ordered(self) -> _Ordered:
        """In the order of the steps, the last value of each."""
        steps, values = np.frombuffer(self.steps, np.int64), np.frombuffer(self.values, np.float64)
        order = np.argsort(steps, kind="stable")
        steps, values = steps[order], values[order]
        last = np.append(steps[1:] != steps[:-1], True)
        return steps[last], values[last]


def assemble(store: Mapping[str, Series], table: Mapping[str, Key]) -> Past | None:
    """The run that the series, by their plain keys, make; None where no signal is among them."""
    sources: dict[str, _Ordered] = {}
    keys: dict[str, Key] = {}
    taken: dict[str, Taken] = {}
    unused: dict[str, str] = {}
    store = {name: series for name, series in store.items() if series.steps}  # all of one may be superseded
    store, own = _one_kl(store, table)
    for known in (known for name, known in table.items() if name in store):
        name = store[known.name].name
        if known.signal in sources:
            unused[name] = f"{taken[known.signal].key} is taken"
            continue
        sources[known.signal] = _, values = store[known.name].ordered()
        key = keys[known.signal] = _in_time(known) if known.ahead and values[0] == 0.0 else known
        taken[key.signal] = Taken(key.signal, name, key.what, key.host, (name,))
    for one in (one for one in DERIVED if one.signal not in sources and {one.first, one.second} <= store.keys()):
        sources[one.signal] = _derived(one, store)
        names = store[one.first].name, store[one.second].name
        taken[one.signal] = Taken(one.signal, f" {one.sign} ".join(names), one.what, one.host, names)
    said = [steps for signal, (steps, _) in sources.items() if signal not in ("lr", FACTOR)]
    if not said:
        return None
    rows = np.unique(np.concatenate(said))
    columns = {signal: _column(rows, series, keys.get(signal)) for signal, series in sources.items()}
    for signal, column in list(columns.items()):
        if why := _says_nothing(signal, column):
            unused[taken.pop(signal).key] = why
            del columns[signal]
    return Past(
        rows,
        columns,
        _kl_sources(rows, keys.get("kl"), own),
        tuple(one for one in taken.values() if one.signal != FACTOR),
        unused,
    )


def _one_kl(
    store: dict[str, Series], table: Mapping[str, Key]
) -> tuple[dict[str, Series], list[tuple[Key, NDArray[np.int64]]]]:
    """A decision log's KLs, of which a step has one, as one series under the first key; and the steps of each key."""
    own = [key for name, key in table.items() if name in store and name.startswith(OWN_KL)]
    if len(own) < 2:
        return store, []
    each = [store.pop(key.name) for key in own]
    one = Series(" or ".join(series.name for series in each))
    for series in each:
        one.steps += series.steps
        one.values += series.values
    return {**store, own[0].name: one}, [(key, series.ordered()[0]) for key, series in zip(own, each, strict=True)]


def _kl_sources(
    rows: NDArray[np.int64], taken: Key | None, own: list[tuple[Key, NDArray[np.int64]]]
) -> Sequence[KLSource]:
    """Per row; where it has no KL, that of the key that is taken."""
    sources = [taken.source if taken else "post_update"] * len(rows)
    for key, steps in own if own and own[0][0] == taken else []:
        for row in np.flatnonzero(np.isin(rows, steps)):
            sources[row] = key.source
    return sources


def _in_time(key: Key) -> Key:
    """Of an lr that begins at 0: that is the first step's, since no lr comes back to it."""
    return key._replace(ahead=False, what=key.what.replace(AHEAD, "that the step used: it begins at 0"))


def _derived(one: Derived, store: Mapping[str, Series]) -> _Ordered:
    (steps, first), (others, second) = store[one.first].ordered(), store[one.second].ordered()
    both, here, there = np.intersect1d(steps, others, assume_unique=True, return_indices=True)
    with np.errstate(all="ignore"):
        return both, first[here] - second[there] if one.sign == "-" else first[here] / second[there]


def _column(rows: NDArray[np.int64], series: _Ordered, key: Key | None) -> Column:
    steps, values = series
    index = np.searchsorted(steps, rows)
    given = np.append(steps, rows[-1] + 1)[index] == rows
    found = np.where(given, np.append(values, 0.0)[index], 0.0) * (key.scale if key else 1.0)
    if key and key.ahead:
        found, given = np.append(0.0, found[:-1]), np.append(False, given[:-1])
    return Column(found, given)


def _says_nothing(signal: str, column: Column) -> str | None:
    values = column.values[column.given]
    if signal == "kl_reward" and np.all(np.abs(values) < 1e-9):
        return "zero at every step: this run has no KL in its reward"
    if signal in ("lr", "kl") and np.all(values == 0.0):
        return "zero at every step: rounded away by the logger (verl's printed three decimals)"
    if signal == "lr" and not np.any(values > 0.0):
        return "never above zero: no lr"
    return None
