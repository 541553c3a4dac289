"""`PolicyProbe`: how far an update moved the model, for hosts that report no policy KL."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from adaptive_warmup.predictions import Excerpt, divergence, excerpt, first_input, predictions

_log = logging.getLogger("adaptive_warmup")
Batch = Mapping[str, Any] | Tensor
_MEMORY = 5  # durations of which the median counts: one evaluation, or one hiccup, is no trend


class PolicyProbe:
    """Measures KL(model before an update || model after it): exact over the vocabulary, nats per token, in eval mode.

        probe, fixed = PolicyProbe(), next(iter(loader))
        for batch in loader:
            model(**batch).loss.backward()
            probe.before(model, fixed)  # anywhere between the last update and this one; here it costs least memory
            optimizer.step()
            scheduler.observe(kl=probe.after(model), kl_source="probe")
            scheduler.step()

    Call both at every update: most calls do nothing, and `after` gives None. In reinforcement learning the batch must
    be of the current rollout, with labels of -100 but for the tokens that the policy sampled. Elsewhere a few fixed
    training sequences will do, and a run bears more: `AdaptiveWarmup(..., target_kl=0.03)`. A step of several updates
    (mini-batches) has one `before` and one `after`.

    Time: two forwards without gradient a measurement, and `max_cost` of the training time at most: each measurement is
    paid for by the updates until the next, and one that is too dear looks at fewer rows from then on. The first is not
    counted, since it may have to warm things up. It is timed by `clock`, on a GPU by events, which wait for nothing;
    but a measurement reads the labels and the KL, and so waits for the device.

    Memory: `positions` x vocabulary logits from `before` to `after` (256 positions of 151,936 words: 156 MB in fp32;
    `memory` tells the bytes), as much again within `after`, and 64 positions three times over in fp32. A model whose
    forward knows no `logits_to_keep` makes logits for all tokens it is shown: rows x (prompt + `length`).

    Several processes: all call it, and each measures its own sequences; a measurement ends with one all-reduce of six
    numbers, so that all get the same mean and go on at the same pace. Sharded modules (FSDP2) gather their parameters
    in the forwards. DDP and `torch.compile` are looked through.

    What goes wrong in a measurement (no logits, no memory) never reaches the training: the probe warns once and is
    `off`. An update that was skipped gives 0, which no law takes for evidence.

    Args:
        sequences: rows of the batch to look at, at most, evenly spread; fewer where time is short.
        positions: predictions to look at, at most, over all rows.
        length: tokens of a causal model to run from the first counted one on.
        every: updates from one measurement to the next, at least.
        max_cost: share of the training time, at most; None: no limit, and so the same run each time to the bit.
        causal: whether position t predicts token t + 1. False where labels stand where they are predicted, as in
            masked language models.
        clock: seconds, monotonic; None: the machine's.

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
        clock: Callable[[], float] | None = None,
    ) -> None:
        counts = {"sequences": sequences, "positions": positions, "length": length, "every": every}
        for name, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number, 1 or more.")
        if max_cost is not None and not 0.0 < max_cost < 1.0:
            raise ValueError(f"max_cost={max_cost!r} must be a share of the training time such as 0.02, or None.")
        self.sequences, self.positions, self.length, self.every = sequences, positions, length, every
        self.max_cost, self.causal, self._clock = max_cost, causal, clock
        self.restart()

    def restart(self) -> None:
        """Forget everything: the next update is the first."""
        self.off = False
        self.memory = 0  # bytes of logits that the latest measurement held from before to after
        self._pace = _Pace(self.sequences, self.every, self.max_cost)
        self._timer = _Timer(self._clock)
        self._left = 0  # updates until the next measurement
        self._measuring = False
        self._leaving: str | None = None
        self._baseline: tuple[Excerpt, Tensor] | None = None

    @property
    def due(self) -> bool:
        """Whether the next `before` will measure."""
        return not self.off and self._left == 0

    def before(self, model: nn.Module, batch: Batch | Callable[[], Batch]) -> None:
        """Note what the model predicts before the update, if a measurement is due.

        Args:
            model: the model as the host runs it, wrapped or not.
            batch: its inputs by name, or token ids `[rows, tokens]`, or a function that gives either, called where a
                measurement is due. `labels` are not given to the model: -100 there marks what does not count. Without
                labels the attention mask tells.
        """
        self._measuring = self.due
        if self._measuring:
            self._timer.start(next((parameter.device for parameter in model.parameters()), torch.device("cpu")))
            self._guarded(self._note, model, batch)
            self._timer.mark()

    def after(self, model: nn.Module) -> float | None:
        """The KL of the update just done, nats per token, mean over the positions and processes; None if not measured.

        NaN where the model's predictions are.
        """
        if not self._measuring:
            self._left = max(self._left - 1, 0)
            return None
        self._measuring = False
        self._timer.mark()
        total, count = self._guarded(self._compare, model) or (0.0, 0.0)
        self._baseline = None
        spent, step = self._timer.stop(self._pace.gap)
        total, count, spent, step, leaving, processes = _summed(
            (total, count, spent, step, float(self._leaving is not None), 1.0), self._timer.device
        )
        if leaving:
            self.off = True
            _log.info("the policy probe is off: %s", self._leaving or "another process asks for it")
        self._pace.pay(spent / processes, step / processes)
        self._left = self._pace.gap - 1
        return max(total / count, 0.0) if count else None

    def retire(self, reason: str) -> None:
        """Measure no more: where there are several processes, all of them, from the next measurement on."""
        self._leaving = self._leaving or reason

    def _note(self, model: nn.Module, batch: Batch | Callable[[], Batch]) -> None:
        given = batch() if callable(batch) else batch
        inputs = {first_input(model): given} if isinstance(given, Tensor) else given
        part = excerpt(inputs, self._pace.rows, self.positions, self.length, self.causal)
        self._baseline = part, predictions(model, part)
        self.memory = self._baseline[1].nbytes

    def _compare(self, model: nn.Module) -> tuple[float, float] | None:
        if self._baseline is None:
            return None
        part, before = self._baseline
        total, count = divergence(before, predictions(model, part), part.counted_RP)
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


class _Pace:
    """When to measure, and how many rows, so that each measurement is paid for by the updates until the next.

    In powers of two: then two runs on the same machine mostly go at the same pace, and so alike.
    """

    def __init__(self, rows: int, every: int, max_cost: float | None) -> None:
        self.rows, self.gap = rows, every
        self._most, self._every, self._max_cost = rows, every, max_cost
        self._spent: deque[float] = deque(maxlen=_MEMORY)
        self._steps: deque[float] = deque(maxlen=_MEMORY)

    def pay(self, spent: float, step: float) -> None:
        """Take in what a measurement took, and an update besides, in seconds; an update's is not known at first."""
        if self._max_cost is None or step <= 0.0:
            return
        self._spent.append(spent)
        self._steps.append(step)
        needed = statistics.median(self._spent) / (self._max_cost * statistics.median(self._steps))
        doublings = min(max(math.ceil(math.log2(max(needed, 1e-9) / self._every)), 0), 20)
        self.gap = self._every << doublings
        rows = max(self.rows >> doublings, 1)
        if 4.0 * needed < self._every:
            rows = min(2 * self.rows, self._most)
        if rows != self.rows:
            self.rows = rows
            self._spent.clear()


class _Timer:
    """Seconds that a measurement takes, and an update besides. CUDA is timed by events, which wait for nothing."""

    device = torch.device("cpu")

    def __init__(self, clock: Callable[[], float] | None) -> None:
        self._clock, self._injected = clock or time.monotonic, clock is not None
        self._began: float | None = None
        self._since = self._spent = 0.0

    def start(self, device: torch.device) -> None:
        """A measurement begins."""
        now = self._clock()
        self._since = now - self._began - self._spent if self._began is not None else 0.0
        self._began, self.device = now, device
        self._marks = [self._mark()]

    def mark(self) -> None:
        """It pauses for the update, or goes on after that."""
        self._marks.append(self._mark())

    def stop(self, updates: int) -> tuple[float, float]:
        """It ends: seconds spent, and seconds for each of the updates since the one before; 0 where there was none."""
        begin, pause, resume, end = *self._marks, self._mark()
        self._spent = self._elapsed(begin, pause) + self._elapsed(resume, end)
        return self._spent, max(self._since, 0.0) / updates

    def _mark(self) -> Any:
        if self._injected or self.device.type != "cuda":
            return self._clock()
        make: Any = torch.cuda.Event
        event = make(enable_timing=True)
        event.record()
        return event

    def _elapsed(self, begin: Any, end: Any) -> float:
        if isinstance(begin, float):
            return float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000.0


def _summed(figures: tuple[float, ...], device: torch.device) -> list[float]:
    """Over all processes."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return list(figures)
    packed = torch.tensor(figures, device=device)
    distributed.all_reduce(packed)
    return [float(figure) for figure in packed.tolist()]
