"""The driver's side of one model, actor or critic: its controller, what verl says of it, and what is logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptive_warmup.controller import Config, Decision
from adaptive_warmup.history import DecisionLog
from adaptive_warmup.integrations.figures import PREFIX, figures
from adaptive_warmup.readers.keys import VERL_CRITIC, Derived, Key, of_verl
from adaptive_warmup.regulator import Regulator
from adaptive_warmup.schedules import Shares


class Warmup:
    """The controller of one model.

    Args:
        role: `actor` or `critic`.
        config: the controller's settings.
        peak: the lr at the top of verl's schedule.
        log: where to write the decision log.
    """

    def __init__(self, role: str, config: Config, peak: float, log: str | None = None) -> None:
        self.regulator = Regulator(config)
        self._peak, self._shares = peak, Shares()
        self._rows, self._derived = of_verl() if role == "actor" else (VERL_CRITIC, ())
        self._prefix = PREFIX if role == "actor" else f"{PREFIX}{role}/"
        self._log = DecisionLog(log, lr=peak) if log else None

    @property
    def decision(self) -> Decision:
        """The latest decision."""
        return self.regulator.decision

    def begin(self, saved: Mapping[str, Any] | None, updates: int) -> None:
        """Go on from `saved`; where there is none, from the nominal warmup after so many RL steps with an update.

        Raises:
            ValueError: as `Regulator.load_state_dict`; a log of another run.
        """
        if saved:
            self.regulator.load_state_dict(saved)
        elif updates:
            self.regulator.restart(at=updates)
        if self._log:
            self._log.open(self.regulator.config)

    def end_step(self, scheduled: float, metrics: Mapping[str, Any], kl: float | None = None) -> dict[str, float]:
        """Decide on the next step's factor; the figures to log are of the step just done.

        Args:
            scheduled: what verl's own schedule gave as its lr.
            metrics: verl's, of the step.
            kl: the policy KL where it was measured after the updates, k3 in nats per token.
        """
        used = self.decision
        self.regulator.observe(kl=kl)
        self.regulator.supply(**signals(metrics, self._rows, self._derived))
        self.regulator.decide(self._shares.of([scheduled], [self._peak])[0])
        lr = scheduled * used.factor
        if self._log:
            self._log.write(self.regulator, lr=lr)
        named = figures(self.regulator.config, used) | {f"{PREFIX}lr": lr}
        return {name.replace(PREFIX, self._prefix, 1): value for name, value in named.items()}


def signals(metrics: Mapping[str, Any], rows: Sequence[Key], derived: Sequence[Derived]) -> dict[str, Any]:
    """Of verl's metrics what the controller knows: of several keys for one signal the first."""
    found: dict[str, Any] = {}
    for row in rows:
        if row.name in metrics and row.signal not in found:
            found[row.signal] = row.scale * metrics[row.name]
            if row.signal == "kl":
                found["kl_source"] = row.source
    for one in derived:
        if one.first in metrics and one.second in metrics and one.sign == "-":
            found.setdefault(one.signal, metrics[one.first] - metrics[one.second])
    return found
