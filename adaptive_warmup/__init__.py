"""Learning-rate warmup that listens to the run: as fast as it can bear, never faster, and it says why."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptive_warmup.controller import Config, Decision, State
    from adaptive_warmup.probe import PolicyProbe
    from adaptive_warmup.regulator import Regulator
    from adaptive_warmup.scheduler import AdaptiveWarmup
    from adaptive_warmup.signals import Signals

__version__ = "0.1.0"
__all__ = ["AdaptiveWarmup", "Config", "Decision", "PolicyProbe", "Regulator", "Signals", "State"]

# Handed out when asked for: importing the package, or its pure parts, must not import torch.
_HOMES = {
    "AdaptiveWarmup": "scheduler",
    "Config": "controller",
    "Decision": "controller",
    "PolicyProbe": "probe",
    "Regulator": "regulator",
    "Signals": "signals",
    "State": "controller",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
