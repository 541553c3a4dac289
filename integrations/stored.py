"""The callback's state in a Trainer's checkpoints: in `trainer_state.json`, among the states of callbacks.

The callback is no `ExportableState`, as the Trainer has it: those it may replace by new ones when it resumes, and what
the user observes on the one that they hold would be lost.
"""

from __future__ import annotations

import logging
from typing import Any, cast

from transformers import TrainerState

from adaptive_warmup.integrations.probing import TrainerProbe
from adaptive_warmup.regulator import Regulator

_log = logging.getLogger("adaptive_warmup")
_KEY, _AT_KEY, _PROBE_KEY = "adaptive_warmup", "adaptive_warmup_at", "adaptive_warmup_probe"


class Stored:
    """What one training stores, and finds stored."""

    def __init__(self, state: TrainerState) -> None:
        self._state, self._all = state, cast("dict[str, Any]", state.stateful_callbacks)

    def store(self, regulator: Regulator, probe: TrainerProbe | None) -> None:
        """Have it in the checkpoint that is about to be written."""
        self._all |= {_KEY: regulator.state_dict(), _AT_KEY: self._state.global_step}
        if probe:
            self._all[_PROBE_KEY] = probe.state_dict()

    def resume(self, regulator: Regulator, probe: TrainerProbe | None, period: int) -> None:
        """Go on from what is stored; from the nominal warmup where the checkpoint is of a run without us.

        Args:
            period: updates under one decision.
        """
        saved, probed, step = self._all.get(_KEY), self._all.pop(_PROBE_KEY, None), self._state.global_step
        at = self._all.get(_AT_KEY, step)  # a state of another step was left when it went on without us
        if saved and at == step > 0:
            regulator.load_state_dict(saved)
            if probe:
                probe.resume(probed)
        elif step:
            regulator.restart(at=step // period)
            _log.info("the checkpoint has no adaptive_warmup state: going on from the nominal warmup")
