"""Advice before a run: a nominal warmup, a target KL, and what in the plan asks for trouble; pure rules, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adaptive_warmup.advice import cautions, nominal
from adaptive_warmup.advice.evidence import Caution, Reason
from adaptive_warmup.advice.files import read_plan
from adaptive_warmup.advice.plan import Plan
from adaptive_warmup.controller import Config

__all__ = ["Advice", "Caution", "Plan", "Reason", "advise", "read_plan"]


@dataclass(frozen=True)
class Advice:
    """What to run with, and why.

    Attributes:
        warmup_steps: the nominal warmup, in steps of the lr schedule. Where signals come, the length follows from them.
        target_kl: nats per token, post-update.
        on_gaming: what should follow when the KL reward is being gamed.
        reasons: for each part of the above, with its source.
        warnings: settings of the plan that ask for trouble.
        host: whose schedule it is, where that is known.
    """

    warmup_steps: int
    target_kl: float
    on_gaming: Literal["hold", "stop"]
    reasons: tuple[Reason, ...]
    warnings: tuple[Caution, ...]
    host: Literal["transformers", "verl"] | None = None

    @property
    def config(self) -> Config:
        """The advice as the controller's settings."""
        return Config(self.warmup_steps, self.target_kl, on_gaming=self.on_gaming)


def advise(plan: Plan) -> Advice:
    """Apply the rules to a plan. Pure: the same plan gets the same advice."""
    warmup_steps, why_steps = nominal.warmup(plan)
    target, why_target = nominal.target_kl(plan)
    on_gaming, why_law = nominal.law_settings(plan, cautions.exposed(plan))
    reasons = (*why_steps, why_target, *why_law)
    return Advice(warmup_steps, target, on_gaming, reasons, tuple(cautions.find(plan, target)), plan.host)
