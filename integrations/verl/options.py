"""The options of `+adaptive_warmup.*` on verl's command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from adaptive_warmup.controller import Config, check_settings
from adaptive_warmup.schedules import default_warmup_steps


@dataclass(frozen=True)
class Options:
    """What may be said under `adaptive_warmup` in verl's config.

    Attributes:
        actor: settings of `Config` for the policy's controller. `warmup_steps` counts RL steps; without it verl's own
            warmup is the nominal one, and where that is 0 `default_warmup_steps`.
        critic: the same for the critic's controller.
        log: where to write the decision log of the actor's controller.
        kl_sequences: on how many sequences of the rollout the policy KL is measured when the step's updates are done;
            0 for none, which leaves verl's `actor/ppo_kl`.

    Raises:
        TypeError, ValueError: an option, or a setting, that is unknown or out of range.
    """

    actor: Mapping[str, Any] = field(default_factory=dict)
    critic: Mapping[str, Any] = field(default_factory=dict)
    log: str | None = None
    kl_sequences: int = 64

    def __post_init__(self) -> None:
        for name, settings in (("actor", self.actor), ("critic", self.critic)):
            if not isinstance(settings, Mapping):
                raise TypeError(f"adaptive_warmup.{name}={settings!r}: give settings, such as {name}.warmup_steps=100.")
            check_settings(settings)
            Config(**{"warmup_steps": 10**9, **settings})  # bad settings fail here, before any model is loaded
        if self.log is not None and not isinstance(self.log, str):
            raise TypeError(f"adaptive_warmup.log={self.log!r}: give the path of a file, such as run.jsonl.")
        if not isinstance(self.kl_sequences, int) or isinstance(self.kl_sequences, bool) or self.kl_sequences < 0:
            raise ValueError(f"adaptive_warmup.kl_sequences={self.kl_sequences!r}: give a whole number, 0 for none.")

    @classmethod
    def of(cls, said: Any) -> Options:
        """Of the node in verl's config as plain values; None where there is none."""
        known = [one.name for one in fields(cls)]
        if not isinstance(said, Mapping | None):
            raise TypeError(f"adaptive_warmup={said!r}: give options, such as +adaptive_warmup.actor.warmup_steps=100.")
        for name in said or {}:
            if name not in known:
                raise TypeError(f"unknown option adaptive_warmup.{name}: known are {', '.join(known)}.")
        return cls(**(said or {}))

    def config(self, role: str, optim: Mapping[str, Any]) -> Config:
        """The controller's settings for `role` (`actor`, `critic`), given verl's `optim` settings of it."""
        settings = self.actor if role == "actor" else self.critic
        steps = int(optim["total_training_steps"])
        theirs = int(optim.get("lr_warmup_steps") or 0)
        if theirs <= 0:
            theirs = int((optim.get("lr_warmup_steps_ratio") or 0.0) * steps)
        return Config(**{"warmup_steps": theirs or default_warmup_steps(steps), **settings})
