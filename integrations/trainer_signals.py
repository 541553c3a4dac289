"""What a running trainer reports of each step, by the keys of `adaptive_warmup.readers.keys`.

The trainers of TRL gather a number for every micro-batch or rollout in lists, and log their means over `logging_steps`.
Read here is what the lists have gained within the step, so that the signals are those of the step, whatever
`logging_steps` is, and nothing is computed, or waited for, that the trainer has not. What stands in no list is taken
from the logs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any

from adaptive_warmup.readers.keys import Formula, Key, mapped, of_trainer

_log = logging.getLogger("adaptive_warmup")


class TrainerSignals:
    """Reads the signals of one trainer's steps.

    Args:
        mine: the user's keys by signal, as `own_keys` gives them; they go before the trainer's.
        trainer: the trainer; None where none is known, and then only logs are read.

    Attributes:
        sources: what each signal was taken from so far.
    """

    def __init__(self, mine: Sequence[Key], trainer: Any = None) -> None:
        ours_too = ("trl", "adaptive_warmup")
        classes = {one.__name__ for one in type(trainer).__mro__ if one.__module__.split(".")[0] in ours_too}
        rows, self._formulas = of_trainer(classes)
        self._rows = (*mine, *rows)
        self._trainer = trainer
        self._marks: dict[str, tuple[list[Any], int]] = {}
        self._listed: set[str] = set()
        self.sources: dict[str, str] = {}

    @property
    def measures_kl(self) -> bool:
        """Whether the trainer measures by itself how far it moved the policy, after its updates."""
        return any(row.signal == "kl" and row.source == "post_update" and row.trainers for row in self._rows)

    def release(self) -> None:
        """The training is done: let go of the trainer; `sources` stays."""
        self._trainer, self._marks = None, {}

    def begin(self) -> None:
        """A step begins: what is in the lists now is of earlier ones."""
        self._marks = {key: (values, len(values)) for key, values in self._lists()}

    def end(self) -> dict[str, Any]:
        """The signals of the step that has just ended, means over its micro-batches; tensors stay where they are."""
        tails = {}
        for key, values in self._lists():
            known, length = self._marks.get(key, (None, 0))
            tails[key] = values[length:] if values is known else values  # a log within the step begins new lists
        return self._signals(tails)

    def logged(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """The signals that a training log has and no list."""
        self._listed |= {key for key, _ in self._lists()}
        return self._signals({key: [value] for key, value in logs.items() if key not in self._listed})

    def _lists(self) -> Iterator[tuple[str, list[Any]]]:
        """Where TRL's trainers gather what they will log: most of them; CPO and ORPO; OnlineDPO."""
        train = [getattr(self._trainer, name, None) for name in ("_metrics", "_stored_metrics")]
        stores = [store["train"] for store in train if isinstance(store, Mapping) and "train" in store]
        for store in (*stores, getattr(self._trainer, "stats", None)):
            if isinstance(store, Mapping):
                yield from ((key, values) for key, values in store.items() if isinstance(values, list))

    def _signals(self, tails: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        numbers = {key: kept for key, values in tails.items() if (kept := [v for v in values if _is_number(v)])}
        found: dict[str, Any] = {}
        for row in self._rows:
            keys = [key for key in numbers if key == row.name or fnmatchcase(key, row.name)]
            if row.signal not in found and keys:
                found[row.signal] = row.scale * _mean([value for key in keys for value in numbers[key]])
                if row.signal == "kl":
                    found["kl_source"] = row.source
                self._tell(row.signal, ", ".join(keys), row.what)
        for one in self._formulas:
            if one.signal not in found and numbers.keys() >= set(one.names):
                found[one.signal] = self._derived(one, numbers)
                self._tell(one.signal, f"derived: {one.text}", one.what)
        return found

    def _derived(self, one: Formula, numbers: Mapping[str, list[Any]]) -> Any:
        beta = getattr(self._trainer, "beta", float("nan"))
        together = zip(*(numbers[name] for name in one.names), strict=False)  # of the same rollout, or micro-batch
        return _mean([one.apply(beta, *values) for values in together])

    def _tell(self, signal: str, source: str, what: str) -> None:
        if signal not in self.sources:
            _log.info("%s is read from %s: %s (%s)", signal, type(self._trainer).__name__, source, what)
        self.sources[signal] = source


def own_keys(signals: Mapping[str, str] | None) -> tuple[Key, ...]:
    """The user's keys, `{"my/kl": "kl"}`: names, or patterns with `*`, and signals, `kl` with its source as `kl:probe`.

    Raises:
        TypeError: no such mapping; an unknown signal, answered with the nearest that is known.
        ValueError: an unknown source of the KL; `lr`, which is no signal.
    """
    if signals is None:
        return ()
    if not isinstance(signals, Mapping) or not all(isinstance(x, str) for pair in signals.items() for x in pair):
        raise TypeError(f"signals={signals!r}: give a dict of the trainer's keys by signal, such as {{'my/kl': 'kl'}}.")
    keys = tuple(mapped(key, signal) for key, signal in signals.items())
    if any(key.signal == "lr" for key in keys):
        raise ValueError(f"signals={signals!r}: the lr is no signal, the callback knows it; leave that key out.")
    return keys


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (hasattr(value, "detach") and value.numel() == 1)


def _mean(values: Sequence[Any]) -> Any:
    cut = [value.detach().reshape(()) if hasattr(value, "detach") else float(value) for value in values]
    return sum(cut) / len(cut)
