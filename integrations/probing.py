"""A `PolicyProbe` under a Trainer, on sequences of its own inputs, for as long as nobody reports a KL as good."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Trainer

from adaptive_warmup.integrations.plumbing import tap
from adaptive_warmup.predictions import IGNORED, Excerpt, size
from adaptive_warmup.probe import PolicyProbe
from adaptive_warmup.regulator import Regulator
from adaptive_warmup.signals import KLSource

_log = logging.getLogger("adaptive_warmup")
Choice = PolicyProbe | Literal["auto"] | None

# Where labels stand at the position that predicts them; everywhere else position t predicts token t + 1.
_ALIGNED = ("ForMaskedLM", "ForTokenClassification")
_PADDING = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}


def check_choice(probe: Any) -> None:
    """Raise TypeError if `probe` is nothing that the callback can probe with."""
    if probe not in ("auto", None) and not isinstance(probe, PolicyProbe):
        raise TypeError(f"probe={probe!r} is unknown: use 'auto', None, or a PolicyProbe.")


def _is_rl(trainer: Trainer) -> bool:
    """Whether the Trainer samples from the policy that it trains: TRL's GRPO and RLOO and their kin."""
    return hasattr(trainer, "num_generations")


class TrainerProbe:
    """Measures the updates of one Trainer by a probe, and reports them to a regulator.

    Plain training: on sequences of its first step, the same ones throughout. Where inputs have completions that were
    sampled (`prompt_ids`, `completion_ids`): on those of the current step, since older ones go stale.

    Plain training bears more than rollouts do, and its KL is reported as such (`training_probe`). The study held the KL
    of all steps at one target: .01 to .03 was best from scratch, .003 to .01 in fine-tuning and on rollouts. The
    controller's target is for the peak of the schedule, and the KL decays with the square of that, to a third of it in
    the mean over a run that decays to 0; so .03 here is .01 there.
    """

    def __init__(self, choice: PolicyProbe | Literal["auto"], trainer: Trainer, undo: ExitStack) -> None:
        self._keeps_rows = not _is_rl(trainer)
        self._source: KLSource = "training_probe" if self._keeps_rows else "probe"
        self._bare: Any = trainer.accelerator.unwrap_model(trainer.model)
        self._probe = choice if isinstance(choice, PolicyProbe) else _made_for(trainer, self._bare)
        self._probe.restart()
        self._args, self._accelerator = trainer.args, trainer.accelerator
        self._model: nn.Module = self._bare
        self._seen: list[Mapping[str, Any]] = []  # inputs of the running step, a micro-batch each
        self._tokens = 0  # of them
        self._fixed: Excerpt | None = None
        self._listening = self._resumed = False
        tap(undo, trainer, "compute_loss", self._see_inputs)
        tap(undo, trainer, "_save_rng_state", self._save_rows)  # each process has such a state of its own, too
        tap(undo, trainer, "_load_rng_state", self._load_rows)

    def state_dict(self) -> dict[str, Any]:
        """Of the first process, for all; the rows that each one looks at are in files of their own."""
        return self._probe.state_dict()

    def resume(self, saved: Mapping[str, Any] | None) -> None:
        """Go on where a checkpoint left off; None: it knows of no probe."""
        self._resumed = saved is not None
        if saved:
            self._probe.load_state_dict(saved)
        else:
            _log.info("the checkpoint has no state of the policy probe, which starts afresh, on new rows")

    def begin(self) -> None:
        """A step begins: what comes by from now on until `before` are its inputs, and not an evaluation's."""
        self._seen, self._tokens, self._listening = [], 0, True

    def before(self) -> None:
        """All inputs of the step have come by, and the update is still to be made."""
        if not self._listening:
            return
        self._listening = False
        self._probe.before(self._model, self._fixed or self._sequences, self._tokens)
        if self._seen and not _is_sampled(self._seen[0]):
            self._fixed = self._probe.part
        self._seen = []

    def after(self, regulator: Regulator) -> None:
        """The update is done: report its KL, but not beside one that the host reports itself."""
        kl = self._probe.after(self._model)
        reported = (regulator.kl_source or "").startswith("post_update")
        if reported and self._args.process_index == 0:  # who decides for all
            self._probe.retire("the host reports a post-update KL of its own")
        elif regulator.state.finished is not None and not regulator.config.guard:
            self._probe.retire("the warmup is done, and nothing is guarded after it")
        elif kl is not None:
            regulator.observe(kl=kl, kl_source=self._source)

    def _see_inputs(
        self, original: Callable[..., Any], model: nn.Module, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if self._listening and isinstance(inputs, Mapping):
            self._model = model
            self._tokens += _tokens(inputs)
            if self._probe.due and self._fixed is None:
                self._seen.append(dict(inputs))  # as they are now: a loss function may take something out
            if self._accelerator.sync_gradients:  # the last micro-batch; DeepSpeed makes the update in its backward
                self.before()
        return original(model, inputs, *args, **kwargs)

    def _sequences(self) -> dict[str, Tensor]:
        if not self._seen:
            raise ValueError("no inputs came by: this Trainer's training_step does not call compute_loss")
        if _is_sampled(self._seen[0]):
            return _joined([_rollout(inputs) for inputs in self._seen])
        return _joined([_examples(inputs, self._bare) for inputs in self._seen])

    def _save_rows(self, original: Callable[..., Any], folder: str) -> None:
        original(folder)
        if self._fixed is not None:
            torch.save(self._fixed._asdict(), self._rows_in(folder))

    def _load_rows(self, original: Callable[..., Any], folder: str | None) -> None:
        original(folder)
        if folder is None or not self._resumed:
            return
        try:
            loaded = torch.load(self._rows_in(folder), map_location=self._args.device, weights_only=True)
            self._fixed = Excerpt(**loaded)
        except Exception as error:  # a measurement is not worth the end of a training
            if self._keeps_rows and not self._probe.off:
                _log.info("the policy probe goes on, on new rows: those of the checkpoint cannot be read (%s)", error)

    def _rows_in(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"adaptive_warmup_probe_{self._args.process_index}.pt"


def _made_for(trainer: Trainer, model: nn.Module) -> PolicyProbe:
    """Where rollouts are sampled, updates are few and dear: each one is measured, if time allows."""
    aligned = getattr(model, "loss_type", None) in _ALIGNED or _encodes_and_decodes(model)
    return PolicyProbe(every=1 if _is_rl(trainer) else 4, causal=not aligned)


def _encodes_and_decodes(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _is_sampled(inputs: Mapping[str, Any]) -> bool:
    return "prompt_ids" in inputs and "completion_ids" in inputs


def _tokens(inputs: Mapping[str, Any]) -> int:
    if _is_sampled(inputs):
        return int(inputs["prompt_ids"].numel() + inputs["completion_ids"].numel())
    return size(inputs)


def _rollout(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Prompts and completions as TRL has them; what counts are the tokens that the policy sampled, not a tool's."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    sampled = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    counted = torch.cat([torch.zeros_like(inputs["prompt_mask"]), sampled], 1).bool()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~counted, IGNORED)}


def _examples(inputs: Mapping[str, Any], model: Any) -> dict[str, Tensor]:
    """The tensors of a plain Trainer's inputs, or of TRL's preference trainers, whose completions count."""
    batch = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    if "completion_mask" in batch and "input_ids" in batch:
        labels = batch["input_ids"].masked_fill(~batch["completion_mask"].bool(), IGNORED)
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
    if _encodes_and_decodes(model) and "labels" in batch and "decoder_input_ids" not in batch:
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    return batch


def _joined(batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The rows of all micro-batches, padded on the right; only the first one's where it is not known how to pad."""
    first = batches[0]
    by_token = all(tensor.dim() == 2 for tensor in first.values())  # labels of whole rows are not
    if first.keys() - _PADDING or first.keys() <= {"input_ids"} or not by_token:
        return first
    width = max(batch["input_ids"].shape[1] for batch in batches)

    def wide(tensor: Tensor, value: int) -> Tensor:
        return pad(tensor, (0, width - tensor.shape[1]), value=value)

    return {name: torch.cat([wide(batch[name], _PADDING[name]) for batch in batches]) for name in first}
