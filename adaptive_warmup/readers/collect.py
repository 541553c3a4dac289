"""From rows to a run: keeps the numbers under keys that can serve, in memory that grows with the steps only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from adaptive_warmup.lines import Notes, number
from adaptive_warmup.quoting import plural
from adaptive_warmup.readers import keys
from adaptive_warmup.readers.past import Past, Series, assemble
from adaptive_warmup.readers.rows import LINE_NUMBER, STEP_KEYS, Row
from adaptive_warmup.readers.unfit import unfit

_MOST_ROWS = 1_000_000
_MOST_NAMES = 1000  # that serve for nothing are kept for a message
_STRAY = 0.1  # of the most rows: less is no way of counting a run's steps


class Collector:
    """Takes rows in, gives the run.

    Args:
        mapping: the user's own keys, by signal (`keys.table`).
        notes: takes what is odd.
    """

    def __init__(self, mapping: Mapping[str, str], notes: Notes) -> None:
        self._table, self._notes = keys.table(mapping), notes
        self._plain: dict[str, str | None] = {}  # of every key that was seen, what the table calls it
        self._doubles: dict[str, str] = {}
        self._stores: dict[str, dict[str, Series]] = {}  # one for each way of counting steps
        self._rows: dict[str, int] = {}
        self._places: dict[str, str] = {}  # the first of each

    def add(self, row: Row) -> bool:
        """Take in a row; False when it is enough."""
        known = [(name, plain) for name in row.values if (plain := self._resolved(name)) is not None]
        step = self._step(row) if known else None
        found = [(name, plain, value) for name, plain in known if (value := self._number(name, row)) is not None]
        if step is None or self._is_filler(found):
            return True
        store = self._stores.setdefault(row.step_key, {})
        if row.anew:
            self._rewind(store, step, row.place, f"the run goes on at step {step}")
        elif any(step < series.last and series.has(step) for series in self._said(store, found)):
            self._rewind(store, step, row.place, "the steps go back to some that were logged (resumed?)")
        for name, plain, value in found:
            self._append(store.setdefault(plain, Series(name)), name, step, value, row.place)
        self._rows[row.step_key] = self._rows.get(row.step_key, 0) + 1
        self._places.setdefault(row.step_key, row.place)
        if self._rows[row.step_key] < _MOST_ROWS:
            return True
        self._notes.add(f"{_MOST_ROWS:,} steps are read: the rest is left out", row.place)
        return False

    def names(self) -> list[str]:
        """All keys that were seen, for a message."""
        return [name for name in self._plain if name not in STEP_KEYS]

    def known(self) -> set[str]:
        """Those that could serve: as they are, and as the table calls them."""
        return {name for pair in self._plain.items() if pair[1] for name in pair if name}

    def silent(self) -> list[str]:
        """The known keys that never had a number."""
        said = {plain for store in self._stores.values() for plain, series in store.items() if series.steps}
        return [name for name, plain in self._plain.items() if plain and plain not in said]

    def past(self) -> Past | None:
        """The run; None where nothing can be taken."""
        past = assemble(self._chosen(), self._table)
        if past is None:
            return None
        used = {name for one in past.taken for name in one.names}
        others = [name for name, plain in self._plain.items() if name not in used and plain not in self._table]
        idle = {name: why for name in others if (why := unfit(name))}
        return replace(past, unused={**idle, **self._doubles, **past.unused})

    def _resolved(self, name: str) -> str | None:
        if name in self._plain:
            return self._plain[name]
        if name not in self._table and (counted := keys.counted(name)):
            self._table[name] = counted
        plain = keys.plain(name, self._table)
        known = plain if plain in self._table or plain in keys.needed() else None
        if known or len(self._plain) < _MOST_NAMES:
            self._plain[name] = known
        return known

    def _step(self, row: Row) -> int | None:
        step = number(row.step)
        if step is None or not step.is_integer() or abs(step) > 2**53:
            self._notes.example(f"{row.step_key} is no whole number, left out", row.step, row.place)
            return None
        return int(step)

    def _number(self, name: str, row: Row) -> float | None:
        value = row.values[name]
        found = number(value)
        if found is None and value not in (None, ""):
            self._notes.example(f"{name} is no number, left out", value, row.place)
        return found

    def _is_filler(self, found: list[tuple[str, str, float]]) -> bool:
        """Whether a table put NaN for what a row does not have: the lr too, and that is never NaN in a run."""
        lrs = [plain for _, plain, _ in found if plain in self._table and self._table[plain].signal == "lr"]
        return bool(lrs) and all(math.isnan(value) for *_, value in found)

    def _said(self, store: dict[str, Series], found: list[tuple[str, str, float]]) -> list[Series]:
        """What the row's keys have said so far; of each signal of another key nothing."""
        return [store[plain] for name, plain, _ in found if plain in store and store[plain].name == name]

    def _append(self, series: Series, name: str, step: int, value: float, place: str) -> None:
        if name != series.name:
            self._doubles[name] = f"{series.name} is taken"
            return
        if step == series.last:
            if math.isnan(value):  # as a table fills up; and where it is the run's own, the later steps have it too
                return
            self._notes.add("the same step again: of one step's values the last counts", place)
        elif step < series.last:
            what = "the steps go back: they are put in order, of one step's values the last counts"
            self._notes.add(what, place)
        series.steps.append(step)
        series.values.append(value)

    def _rewind(self, store: dict[str, Series], step: int, place: str, why: str) -> None:
        if sum(series.rewind(step) for series in store.values()):
            self._notes.add(f"{why}: what was logged before of that step and of later ones is superseded", place)

    def _chosen(self) -> dict[str, Series]:
        """The rows that count steps in the surest way, but for a stray few; the others cannot be brought in line."""
        order = [name for name in (*STEP_KEYS, LINE_NUMBER) if name in self._stores]
        order.sort(key=lambda name: self._rows[name] < _STRAY * max(self._rows.values()))
        for name in order[1:]:
            rows = f"{plural(self._rows[name], 'row')}, the first at {self._places[name]},"
            self._notes.add(f"{rows} with steps counted by {name}, not by {order[0]}: left out")
        if order[:1] == [LINE_NUMBER]:
            self._notes.add(f"no step is given ({', '.join(STEP_KEYS)}): lines are counted instead")
        return self._stores[order[0]] if order else {}
