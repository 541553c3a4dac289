"""A controller with its memory: gathers signals between decisions, decides, and saves itself. Used by every adapter.

Imports no torch: a tensor is whatever can `detach`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from adaptive_warmup import controller, feedforward, ramp
from adaptive_warmup.alarms import Alarm, is_finite
from adaptive_warmup.controller import Config, Decision
from adaptive_warmup.intake import check_step, checked, read
from adaptive_warmup.sealing import opened, sealed
from adaptive_warmup.signals import NO_MEASUREMENT, Signals

_log = logging.getLogger("adaptive_warmup")
_WHOLE = 0.9  # of its lr: a step whose updates had as much in the mean is not a cut one
_VOID = 8  # KLs at the start of a run that measure nothing, until that is said
REACH = 64  # steps back that a late KL may be of


class Regulator:
    """One controller at work.

    Attributes:
        config: its settings.
        state: its memory; `before`, the one that the latest decision was taken with.
        decision: the latest decision; at first the one for update 0.
        signals: what the latest decision was taken on; None at first.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.restart()

    def restart(self, at: int = 0) -> None:
        """Forget everything: the next update is number `at`, on the nominal warmup."""
        self.state = self.before = controller.start(self.config, at)
        self.decision = controller.opening(self.config, self.state)
        self.signals: Signals | None = None
        self._waiting: dict[str, Any] = {}
        self._cuts: list[float] = []
        # The lrs of the latest steps as multiples of base_lr; 0 where a KL has come, or would say nothing of the lr.
        self._lrs: deque[float] = deque(maxlen=REACH)
        self._dated = False  # said once that a KL came too late
        self._void: int | None = 0  # KLs so far that measured nothing; None: one has measured

    def observe(self, kl_source: str | None = None, of_step: int | None = None, **signals: Any) -> None:
        """Take in any subset of the signals of `Signals`; of one reported twice before a decision the last counts.

        Values are floats, numpy scalars or one-element tensors. A tensor on a device is not read before `decide`.

        Args:
            kl_source: how the `kl` of the same call was measured; without it, after the update.
            of_step: which step that `kl` is of, as `decision.step` was while it ran; without it, the running one. Of
                every step one KL counts. A second one, one that is more than 64 steps late, and one of a step before
                a restart, or at a cut lr, are left out with a warning, given once.

        Raises:
            TypeError: an unknown signal, or a value that is no number.
            ValueError: an array or tensor of more than one element, or in parts on several processes; an unknown
                `kl_source`; a step that is still to come. Nothing is taken in then.
        """
        taken = checked(kl_source, of_step, **signals)
        if of_step is not None:
            self._date(taken)
        elif "kl_lr" in self._waiting and "kl" in taken:
            del self._waiting["kl_lr"]
        self._waiting |= taken

    @property
    def kl_source(self) -> str | None:
        """How the KL was measured that waits for the next decision; None where none does."""
        return self._waiting["kl_source"] if "kl" in self._waiting else None

    def supply(self, **signals: Any) -> None:
        """As `observe`, for what a host reports by itself: what somebody has observed since the last decision stays."""
        told = self._waiting.keys() | ({"kl_source", "of_step"} if "kl" in self._waiting else set())
        self.observe(**{name: value for name, value in signals.items() if name not in told})

    def cut(self, grad_norm: float) -> float:
        """What to multiply the lr of the coming update by, in (0, 1], by its gradient's norm (see `feedforward`)."""
        cut = feedforward.cut(self.config, self.state, grad_norm)
        self._cuts.append(cut)
        return cut

    @property
    def limits(self) -> feedforward.Limits | None:
        """What `cut` goes by, for a host that cuts the coming update without reading its gradient's norm."""
        return feedforward.limits(self.config, self.state)

    @property
    def cut_share(self) -> float:
        """What `cut` has left of the lr of the updates since the last decision, in the mean; 1 without any."""
        return sum(self._cuts) / len(self._cuts) if self._cuts else 1.0

    def decide(self, lr_scale: float = 1.0) -> Decision:
        """The decision for the next update, on all that was observed since the last one.

        Args:
            lr_scale: multiplier of the user's own schedule during the step just done.
        """
        heard = read(self._waiting)
        cut = self.cut_share < _WHOLE
        timely = "kl" in heard and "kl_lr" not in heard
        if cut and timely and is_finite(heard["kl"]):
            del heard["kl"]  # of updates at a cut lr, it says nothing of the run's gain
        told = cut or timely or not ramp.measurable(lr_scale)
        self._lrs.append(0.0 if told else self.state.factor * lr_scale)
        self.signals = Signals(lr_scale=lr_scale, **heard)
        self._tell_of_void(self.signals)
        before, self.before = self.decision, self.state
        self.state, self.decision = controller.step(self.config, self.state, self.signals)
        self._waiting, self._cuts = {}, []
        for alarm in self.decision.alarms:
            if alarm.kind not in [known.kind for known in before.alarms]:
                _log.warning("step %d, %s: %s", self.state.step, alarm.name, alarm.message)
        return self.decision

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next decisions depend on, as plain scalars, lists and dicts.

        `torch.distributed.checkpoint` takes dicts apart and loads no key that a new regulator has not yet: give it a
        tuple, `(regulator.state_dict(),)`.
        """
        return sealed(
            {
                "config": asdict(self.config),
                "state": self.state.to_dict(),
                "waiting": read(self._waiting),
                "cuts": list(self._cuts),
                "lrs": list(self._lrs),
                "decision": _plain(self.decision),
            }
        )

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on exactly where `saved` was taken; the settings stay those of this regulator.

        Raises:
            ValueError: a state of another version, or one that is damaged. Nothing is changed then.
        """
        content = opened(saved)
        state, decision = controller.State.from_dict(content["state"]), _decision(content["decision"])
        if content["config"] != asdict(self.config):
            _log.warning("resuming with %s; the state was saved with %s", self.config, content["config"])
            if content["config"]["warmup_steps"] != self.config.warmup_steps:  # the clock counts along another ramp
                state = state._replace(clock=state.factor * self.config.warmup_steps)
        self.state, self.before, self.decision, self.signals = state, state, decision, None
        self._waiting, self._cuts = dict(content["waiting"]), list(content["cuts"])
        self._lrs = deque(content.get("lrs", ()), maxlen=REACH)  # states of before there were late KLs have none
        self._void = None if state.law else 0

    def _tell_of_void(self, signals: Signals) -> None:
        """Say so where KLs are reported and none measures: without a ceiling, what was to be watched is not."""
        kl, may_be_0 = signals.kl, signals.kl_source == "clip_fraction" or not ramp.measurable(signals.lr_scale)
        if self._void is None or may_be_0 or not is_finite(kl):
            return
        self._void = self._void + 1 if kl <= NO_MEASUREMENT else None
        if self._void == _VOID and self.config.law != "linear":
            _log.warning(
                "the KL was reported %d times, and never above zero (now %.3g): so there is no ceiling, and the pace is"
                " nominal; report KL(policy before the step || after it), measured after its last update, and check"
                " that the updates change the weights (bf16 rounds small ones away)",
                self._void,
                kl,
            )

    def _date(self, taken: dict[str, Any]) -> None:
        """Note the lr of the step that a KL is of; take the KL out where that is not known, or has a KL."""
        of_step = taken.pop("of_step")
        check_step(of_step, self.state.step)
        late = self.state.step - of_step
        if "kl" not in taken:
            return
        lr = self._lrs[-late] if 0 < late <= len(self._lrs) else 0.0
        if lr:
            taken["kl_lr"], self._lrs[-late] = lr, 0.0
        elif not late:
            self._waiting.pop("kl_lr", None)
        else:
            del taken["kl"], taken["kl_source"]
            what = "a second one of its step, more than %d steps late, or of a step that says nothing of the lr"
            level, self._dated = logging.DEBUG if self._dated else logging.WARNING, True
            _log.log(level, f"the KL of step %d, come in step %d, is left out: {what}", of_step, self.state.step, REACH)


def _plain(decision: Decision) -> dict[str, Any]:
    lists = {"reasons": list(decision.reasons), "alarms": [list(alarm) for alarm in decision.alarms]}
    return decision._asdict() | lists


def _decision(plain: Mapping[str, Any]) -> Decision:
    alarms = tuple(Alarm(*alarm) for alarm in plain["alarms"])
    return Decision(**{**plain, "reasons": tuple(plain["reasons"]), "alarms": alarms})
