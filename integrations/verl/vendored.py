"""For the verl of 2024 that Search-R1 carries along, which has no extension points: two names for its patch to call.

docs/integrations/search-r1.md has the patch. Imports neither verl nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptive_warmup.integrations.verl.options import Options
from adaptive_warmup.integrations.verl.warmup import Warmup
from adaptive_warmup.schedules import drive

__all__ = ["Warmups", "drive"]  # the driver's side, and the workers'


class Warmups:
    """The driver's side: `factors` go to the workers with the batch, `end_step` takes verl's metrics of the step.

    That verl's schedule is constant after its warmup, and it resumes nothing: so it is with this.

    Args:
        config: verl's, as plain dicts (`OmegaConf.to_container(config)`), our options under `adaptive_warmup`.

    Raises:
        TypeError, ValueError: as `Options`; a log of another run.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        options = Options.of(config.get("adaptive_warmup"))
        optims = {"actor": config["actor_rollout_ref"]["actor"]["optim"]}
        if config["algorithm"]["adv_estimator"] == "gae":
            optims["critic"] = config["critic"]["optim"]
        self._peaks = {role: float(optim["lr"]) for role, optim in optims.items()}
        self._warmups = {
            role: Warmup(role, options.config(role, optim), self._peaks[role], options.log if role == "actor" else None)
            for role, optim in optims.items()
        }
        for warmup in self._warmups.values():
            warmup.begin(None, 0)

    @property
    def factors(self) -> dict[str, float]:
        """What the lrs of the next step are to be multiplied by."""
        return {role: warmup.decision.factor for role, warmup in self._warmups.items()}

    def end_step(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Decide on the next step; what to log of the one just done, `actor/lr` and `critic/lr` of the next."""
        named: dict[str, float] = {}
        for role, warmup in self._warmups.items():
            if f"{role}/lr" in metrics:  # it was updated
                named |= warmup.end_step(self._peaks[role], metrics)
                named[f"{role}/lr"] = self._peaks[role] * warmup.decision.factor
        return named
