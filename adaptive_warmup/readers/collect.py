"""From rows to a run: keeps the numbers under keys that can serve, in memory that grows with the steps only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from adaptive_warmup.lines import Notes, number
from adaptive_warmup.readers import keys
from adaptive_warmup.readers.past import Past, Series, assemble
from adaptive_warmup.readers.rows import LINE_NUMBER, STEP_KEYS, Row

_MOST_ROWS = 1_000_000
_MOST_NAMES = 1000


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
        if step is None:
            return True
        store = self._stores.setdefault(row.step_key, {})
        if row.anew:
            self._rewind(store, step, row.place)
        for name, plain in known:
            value = self._number(name, row)
            if value is not None:
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

    def past(self) -> Past | None:
        """The run; None where nothing can be taken."""
        past = assemble(self._chosen(), self._table)
        if past is None:
            return None
        used = {name for one in past.taken for name in one.names}
        unfit = {name: why for name in self._plain if name not in used and (why := keys.unfit(name))}
        return replace(past, unused={**unfit, **self._doubles, **past.unused})

    def _resolved(self, name: str) -> str | None:
        if name not in self._plain:
            if len(self._plain) >= _MOST_NAMES:
                return None
            plain = keys.plain(name, self._table)
            self._plain[name] = plain if plain in self._table or plain in keys.needed() else None
        return self._plain[name]

    def _step(self, row: Row) -> int | None:
        step = number(row.step)
        if step is None or not step.is_integer() or abs(step) > 2**53:
            self._notes.add(f"step {row.step!r} is no whole number, left out", row.place)
            return None
        return int(step)

    def _number(self, name: str, row: Row) -> float | None:
        value = row.values[name]
        found = number(value)
        if found is None and value not in (None, ""):
            self._notes.add(f"{name} is {str(value)[:40]!r}, no number; left out", row.place)
        return found

    def _append(self, series: Series, name: str, step: int, value: float, place: str) -> None:
        if name != series.name:
            self._doubles[name] = f"{series.name} is taken"
            return
        if series.steps and step == series.steps[-1]:
            self._notes.add("the same step again: of one step's values the last counts", place)
        elif series.steps and step < series.steps[-1]:
            what = "the steps go back (resumed?): they are put in order, of one step's values the last counts"
            self._notes.add(what, place)
        series.steps.append(step)
        series.values.append(value)

    def _rewind(self, store: dict[str, Series], step: int, place: str) -> None:
        if sum(series.rewind(step) for series in store.values()):
            what = f"the run goes on at step {step}: what was logged before of it and of later steps is superseded"
            self._notes.add(what, place)

    def _chosen(self) -> dict[str, Series]:
        """The rows that count steps in the surest way; those that count otherwise cannot be brought in line."""
        order = [name for name in (*STEP_KEYS, LINE_NUMBER) if name in self._stores]
        for name in order[1:]:
            rows = f"{self._rows[name]} rows, the first at {self._places[name]},"
            self._notes.add(f"{rows} count steps by {name}, not by {order[0]}: left out")
        if order[:1] == [LINE_NUMBER]:
            self._notes.add(f"no step is given ({', '.join(STEP_KEYS)}): lines are counted instead")
        return self._stores[order[0]] if order else {}
