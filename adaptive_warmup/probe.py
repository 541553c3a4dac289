"""`PolicyProbe`: how far an update moved the model, for hosts that report no policy KL."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from adaptive_warmup.predictions import Excerpt, divergence, excerpt, first_input, predictions, size
from adaptive_warmup.quoting import quoted
from adaptive_warmup.sealing import opened, sealed

_log = logging.getLogger("adaptive_warmup")
Batch = Mapping[str, Any] | Tensor | Excerpt
_UPDATE = 3  # forwards that an update costs for each of its tokens: one, and a backward of about two
_MEASUREMENT = 2  # that a measurement costs: before the update, and after it


class PolicyProbe:
    """Measures KL(model before an update || model after it): exact over the vocabulary, nats per token, in eval mode.

        probe, fixed = PolicyProbe(), next(iter(loader))
        for batch in loader:
            model(**batch).loss.backward()
            probe.before(model, fixed)  # anywhere between the last update and this one; here it costs least memory
            optimizer.step()
            scheduler.observe(kl=probe.after(model), kl_source="training_probe")
            scheduler.step()

    Call both at every update: most calls do nothing, and `after` gives None. So in fine-tuning, where a few fixed
    training sequences will do: a run bears three times as much there, and its way up is never quicker than the nominal
    warmup. In reinforcement learning say `kl_source="probe"`, with a batch of the current rollout whose labels are -100
    but for the tokens that the policy sampled. A step of several updates has one `before` and one `after`.

    Cost: two forwards without gradient a measurement, and `max_cost` of the training's work at most, counted in tokens
    that go through the model: an update costs three forwards for each of its tokens (of adapters, of which only a few
    weights have a gradient, it is about two, and the share half as much again). Each measurement is paid for by the
    updates until the next, so that a dear one looks at fewer rows, and is made less often. No clock takes part: runs
    repeat to the bit, and with `state_dict` they resume to the bit. A measurement reads the labels and the KL, and so
    waits for the device.

    Memory: `positions` x vocabulary logits from `before` to `after` (256 positions of 151,936 words: 156 MB in fp32;
    `memory` tells the bytes), as much again within `after`, and 64 positions three times over in fp32. A model whose
    forward knows no `logits_to_keep` makes logits for all tokens it is shown: rows x (prompt + `length`).

    Several processes: all call it, and each measures its own sequences; a measurement ends with one all-reduce of five
    numbers, so that all get the same mean and go on at the same pace, that of the first one's tokens. Sharded modules
    (FSDP2) gather their parameters in the forwards. DDP and `torch.compile` are looked through.

    What goes wrong in a measurement (no logits, no memory) never reaches the training: the probe warns once and is
    `off`. An update that was skipped gives 0, which no law takes for evidence.

    Args:
        sequences: rows of the batch to look at, at most, evenly spread; fewer where `every` updates do not pay.
        positions: predictions to look at, at most, over all rows.
        length: tokens of a causal model to run from the first counted one on.
        every: updates from one measurement to the next, at least.
        max_cost: share of the training's work, at most; None: no limit.
        causal: whether position t predicts token t + 1. False where labels stand where they are predicted, as in
            masked language models.

    Raises:
        ValueError: a setting out of its range, quoted with the remedy.
    """

    def __init__(
        self,
        sequences: int = 8,
        positions: int = 256,
        length: int = 512,
        every: int = 4,
        max_cost: float | None = 0.02,
        causal: bool = True,
    ) -> None:
        counts = {"sequences": sequences, "positions": positions, "length": length, "every": every}
        for name, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={quoted(value)} must be a whole number, 1 or more.")
        if max_cost is not None and not (isinstance(max_cost, (int, float)) and 0.0 < max_cost < 1.0):
            raise ValueError(
                f"max_cost={quoted(max_cost)} must be a share of the training's work such as 0.02, or None."
            )
        self.sequences, self.positions, self.length, self.every = sequences, positions, length, every
        self.max_cost, self.causal = max_cost, causal
        self.restart()

    def restart(self) -> None:
        """Forget everything: the next update is the first."""
        self.off = False
        self.memory = 0  # bytes of logits that the latest measurement held from before to after
        self.part: Excerpt | None = None  # what the latest measurement looked at
        self._pace = _Pace()
        self._measuring = False
        self._leaving: str | None = None
        self._baseline: Tensor | None = None

    @property
    def due(self) -> bool:
        """Whether the next `before` will measure."""
        return not self.off and self._pace.left == 0

    def before(self, model: nn.Module, batch: Batch | Callable[[], Batch], tokens: int | None = None) -> None:
        """Note what the model predicts before the update, if a measurement is due.

        Args:
            model: the model as the host runs it, wrapped or not.
            batch: its inputs by name, or token ids `[rows, tokens]`, or a function that gives either, called where a
                measurement is due. `labels` are not given to the model: -100 there marks what does not count. Without
                labels the attention mask tells. Or the `part` of an earlier measurement, to look at the same again.
            tokens: how many this process trains on in this update, padding included; None: as many as `batch` has.

        Raises:
            TypeError: what is given is no model. Whatever goes wrong after that is told, and ends the measuring only.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"before({quoted(model)}, ...): give the torch model in training, as trainer.model.")
        self._measuring = self.due
        self._pace.tokens = tokens or self._pace.tokens
        if self._measuring:
            self._guarded(self._note, model, batch, tokens)

    def after(self, model: nn.Module) -> float | None:
        """The KL of the update just done, nats per token, mean over the positions and processes; None if not measured.

        NaN where the model's predictions are.
        """
        self._pace.update()
        if not self._measuring:
            return None
        self._measuring = False
        total, count = self._guarded(self._compare, model) or (0.0, 0.0)
        self._baseline = None
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        sums = (total, count, float(self._leaving is not None))
        total, count, leaving, spent, trained = _agreed(sums, (self._pace.spent, self._pace.trained), device)
        if leaving:
            self.off = True
            _log.info("the policy probe is off: %s", self._leaving or "another process asks for it")
        self._pace.pay(self.every, self.max_cost, spent, trained)
        return max(total / count, 0.0) if count else None

    def retire(self, reason: str) -> None:
        """Measure no more: where there are several processes, all of them, from the next measurement on."""
        self._leaving = self._leaving or reason

    def state_dict(self) -> dict[str, Any]:
        """What the coming measurements depend on but for the batches, in plain scalars: the first one's, for all."""
        return sealed({"off": self.off, "leaving": self._leaving, "pace": asdict(self._pace)})

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on exactly where `saved` was taken, on all processes alike; the settings stay those of this probe.

        Raises:
            ValueError: a state of another version, or one that is damaged. Nothing is changed then.
        """
        content = opened(saved)
        self.restart()
        self.off, self._leaving = content["off"], content["leaving"]
        self._pace = _Pace(**content["pace"])

    def _note(self, model: nn.Module, batch: Batch | Callable[[], Batch], tokens: int | None) -> None:
        given = batch() if callable(batch) else batch
        inputs = {first_input(model): given} if isinstance(given, Tensor) else given
        if tokens is None:
            self._pace.tokens = size(inputs)
        if not isinstance(inputs, Excerpt):
            inputs = excerpt(inputs, self.sequences, self.positions, self.length, self.causal, self._affordable)
        self.part = inputs
        self._pace.spent = _MEASUREMENT * size(self.part)
        self._baseline = predictions(model, self.part)
        self.memory = self._baseline.nbytes

    @property
    def _affordable(self) -> float:
        """Tokens to look at that `every` updates like this one pay for."""
        paid = math.inf if self.max_cost is None else self.max_cost * self.every
        return paid * _UPDATE * max(self._pace.tokens, 1) / _MEASUREMENT

    def _compare(self, model: nn.Module) -> tuple[float, float] | None:
        if self._baseline is None or self.part is None:
            return None
        total, count = divergence(self._baseline, predictions(model, self.part), self.part.counted_RP)
        kl, counted = torch.stack([total, count.to(total.dtype)]).tolist()
        return kl, counted

    def _guarded(self, measure: Callable[..., Any], *args: Any) -> Any:
        """Whatever goes wrong in here is no reason to stop the training."""
        try:
            return measure(*args)
        except Exception as error:
            self._leaving = f"{type(error).__name__}: {error}"
            _log.warning(
                "the policy probe cannot measure: %s. The warmup keeps its nominal pace: report a KL of your own by"
                " observe(kl=...), or go without (probe=None)",
                self._leaving,
            )
            return None


@dataclass
class _Pace:
    """When to measure, so that each measurement is paid for by the updates until the next, in tokens run forward."""

    left: int = 0  # updates until the next measurement
    tokens: int = 0  # that an update trains on, the latest number known
    trained: int = 0  # tokens since the last measurement
    updates: int = 0
    spent: int = 0  # by the measurement at work
    owed: float = 0.0  # by measurements, and not yet paid for by updates

    def update(self) -> None:
        """An update has been made."""
        self.trained += self.tokens
        self.updates += 1
        self.left = max(self.left - 1, 0)

    def pay(self, every: int, max_cost: float | None, spent: float, trained: float) -> None:
        """A measurement has been made, for `spent`, after so many tokens were trained on."""
        gap = every
        if max_cost is not None:
            earned = max_cost * _UPDATE * max(trained, 1)
            self.owed = max(self.owed - earned, 0.0) + spent
            gap = max(gap, math.ceil(self.owed * self.updates / earned))
        self.left = gap - 1
        self.trained = self.updates = self.spent = 0


def _agreed(sums: tuple[float, ...], firsts: tuple[float, ...], device: torch.device) -> list[float]:
    """The sums over all processes, and the first one's own figures."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return [*sums, *firsts]
    packed = torch.tensor([*sums, *(figure * (distributed.get_rank() == 0) for figure in firsts)], device=device)
    distributed.all_reduce(packed)
    return [float(figure) for figure in packed.tolist()]
