"""What every host must keep to, as a class of tests for pytest (or any runner that calls methods named `test_*`)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from adaptive_warmup.controller import Config
from adaptive_warmup.regulator import Regulator

_WARMUP = 6
_SETTINGS = {"warmup_steps": _WARMUP, "target_kl": 0.01}
# Of a run that first bears its lr, then does not, and then does again.
_KLS = (1e-4, 2e-4, 1e-3, 4e-2, 3e-2, 2e-2, 8e-3, 6e-3, 1e-2, 5e-3, 4e-3, 3e-3)


class HostContract(ABC):
    """Derive from it, say how an update is made in your host, and let pytest run the class.

    Attributes:
        peak: the lr that the user set, with a schedule that stays there.
    """

    peak: float = 0.1

    @abstractmethod
    def lrs(
        self, settings: dict[str, Any], kls: Sequence[float | None], resume_after: int | None = None
    ) -> list[float]:
        """Train for one update for each of `kls` under your adapter; the lr that each update truly ran at.

        Args:
            settings: of the adapter: those of `Config` by name.
            kls: to be reported of each step by the adapter's `observe(kl=...)`; None: no report.
            resume_after: None, or the number of updates after which the run is saved, and gone on with in a new host.
        """

    def test_without_signals_it_is_the_nominal_linear_warmup(self) -> None:
        """Update t runs at (t + 1) / warmup_steps of the peak."""
        ramp = [min(1.0, (t + 1) / _WARMUP) for t in range(len(_KLS))]
        self._expect(self.lrs(_SETTINGS, [None] * len(_KLS)), ramp)

    def test_it_decides_once_for_each_update_on_what_was_observed_of_it(self) -> None:
        """The lrs are those of a `Regulator` that is told the same."""
        self._expect(self.lrs(_SETTINGS, _KLS), _factors(_KLS))

    def test_a_kl_that_is_not_finite_holds_the_lr(self) -> None:
        """And training goes on."""
        for broken in (math.nan, math.inf):
            kls = [*_KLS[:6], broken, *_KLS[7:]]
            used = self.lrs(_SETTINGS, kls)
            self._expect(used, _factors(kls))
            assert used[7] <= used[6] * (1 + 1e-6), f"the lr rose on a KL of {broken}: {used}"

    def test_a_resumed_run_is_the_uninterrupted_one(self) -> None:
        """Wherever it is cut."""
        whole = self.lrs(_SETTINGS, _KLS)
        for cut in (1, 5, len(_KLS) - 1):
            resumed = self.lrs(_SETTINGS, _KLS, resume_after=cut)
            assert resumed == whole, f"saved after {cut} updates, the lrs are {resumed}; uninterrupted, {whole}"

    def _expect(self, used: list[float], factors: list[float]) -> None:
        wanted = [self.peak * factor for factor in factors]
        same = len(used) == len(wanted) and all(map(_close, used, wanted))
        assert same, f"the lrs of the updates are {used}, they should be {wanted}"


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6)  # where lrs are float32


def _factors(kls: Sequence[float | None]) -> list[float]:
    """What a regulator that is told these decides for each update."""
    regulator = Regulator(Config(**_SETTINGS))  # type: ignore[arg-type]
    used = []
    for kl in kls:
        used.append(regulator.decision.factor)
        regulator.observe(kl=kl)
        regulator.decide()
    return used
