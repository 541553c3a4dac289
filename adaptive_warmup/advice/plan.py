"""What a run is planned to be: the settings that the advice looks at, each with its meaning and its range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from adaptive_warmup.history import Run
from adaptive_warmup.signals import KL_SOURCES, is_source


@dataclass(frozen=True)
class Kind:
    """A kind of value: how to read it from what a file or a command line holds, and what it must be."""

    words: str
    convert: Callable[[Any], Any]
    valid: Callable[[Any], bool] = lambda value: True
    choices: tuple[str, ...] = ()

    def read(self, name: str, value: Any) -> Any:
        """The value as a setting; ValueError quoting it where it is none."""
        try:
            result = self.convert(value)
        except (TypeError, ValueError, KeyError, OverflowError):
            result = None
        if result is None or not self.valid(result):
            raise ValueError(f"{name}={value!r}: give {self.words}.")
        return result


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError("a switch is no number")
    number = float(value)  # YAML reads 1e-6 as text
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _whole(value: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise ValueError("not whole")
    return int(number)


def _switch(value: Any) -> bool:
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[str(value).lower()]


def _pair(value: Any) -> tuple[float, float]:
    low, high = value
    return _number(low), _number(high)


def _one_of(*choices: str) -> Kind:
    words = f"one of {', '.join(choices)}"
    return Kind(words, lambda value: str(value).lower(), lambda value: value in choices, choices)


POSITIVE = Kind("a positive number, such as 1e-6", _number, lambda x: x > 0)
NOT_NEGATIVE = Kind("a number, 0 or more", _number, lambda x: x >= 0)
SHARE = Kind("a number from 0 to 1", _number, lambda x: 0 <= x <= 1)
BELOW_ONE = Kind("a number from 0 to below 1", _number, lambda x: 0 <= x < 1)
PROBABILITY = Kind("a number above 0, up to 1 (1 samples from the policy itself)", _number, lambda x: 0 < x <= 1)
WHOLE = Kind("a whole number", _whole)
COUNT = Kind("a whole number, 1 or more", _whole, lambda x: x >= 1)
OFF_OR_COUNT = Kind("a whole number, 0 for off", _whole, lambda x: x >= -1)
SWITCH = Kind("true or false", _switch, choices=("true", "false"))
PAIR = Kind("two numbers, such as 0.9 0.999", _pair)
RANGE = Kind("two numbers, the lower one first, such as 0 1", _pair, lambda pair: pair[0] < pair[1])
TEXT = Kind("a name", str)
SOURCE = Kind(f"one of {', '.join(KL_SOURCES)}, in_loop:4x2, post_update:4x8", str, is_source)


def _setting(kind: Kind, meaning: str, **default: Any) -> Any:
    return field(metadata={"kind": kind, "meaning": meaning}, **({"default": None} | default))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of a planned run. None: not said, or not there; nothing is assumed about it.

    Values may come as files and command lines give them, such as '1e-6'. What each means is with it, and in
    `adaptive-warmup advise --help`. `total_steps`, `warmup_steps` and the advised warmup are counted in steps of the lr
    schedule: RL steps in verl, optimizer updates in a Trainer.

    Raises:
        ValueError: a setting is out of its range.
    """

    lr: float = _setting(POSITIVE, "peak learning rate of the policy", default=MISSING)
    total_steps: int = _setting(COUNT, "length of the run, in steps of the lr schedule", default=MISSING)
    warmup_steps: int | None = _setting(OFF_OR_COUNT, "warmup that the schedule has already, in steps")
    warmup_ratio: float | None = _setting(SHARE, "the same, as a share of the run")
    schedule: str | None = _setting(TEXT, "the lr schedule after the warmup, such as constant or cosine")
    beta2: float | None = _setting(BELOW_ONE, "Adam's second beta")
    batch_size: int | None = _setting(COUNT, "responses per rollout, of all processes together")
    mini_batches: int | None = _setting(COUNT, "optimizer updates in one pass over a rollout")
    epochs: int | None = _setting(COUNT, "PPO epochs: passes over each rollout")
    updates_per_step: int | None = _setting(COUNT, "optimizer updates per schedule step, if not all of a rollout's")
    kl_in: Literal["reward", "loss", "none"] | None = _setting(
        _one_of("reward", "loss", "none"), "where the KL to the reference enters"
    )
    kl_coef: float | None = _setting(NOT_NEGATIVE, "its coefficient, per nat")
    kl_estimator: Literal["k1", "k2", "k3", "abs"] | None = _setting(_one_of("k1", "k2", "k3", "abs"), "its estimator")
    kl_source: str | None = _setting(SOURCE, f"how the policy KL will be measured: {SOURCE.words}")
    top_p: float | None = _setting(PROBABILITY, "of the rollout's sampler; 1 is off")
    top_k: int | None = _setting(OFF_OR_COUNT, "of the sampler; 0 or -1 is off")
    min_p: float | None = _setting(SHARE, "of the sampler; 0 is off")
    min_new_tokens: int | None = _setting(OFF_OR_COUNT, "of the sampler: tokens before which it may not end; 0 is off")
    repetition_penalty: float | None = _setting(POSITIVE, "of the sampler; 1 is off")
    temperature: float | None = _setting(POSITIVE, "of the sampler")
    logprob_temperature: float | None = _setting(POSITIVE, "by which logits are divided where log-probs are taken")
    turns: int | None = _setting(COUNT, "turns with the environment or tools in an episode, at most")
    tool_tokens_masked: bool | None = _setting(SWITCH, "whether its tokens are left out of the loss and the KL")
    reward_range: tuple[float, float] | None = _setting(RANGE, "least and greatest task reward of an episode")
    sparse_reward: bool | None = _setting(SWITCH, "whether the task pays only at the end, right or wrong")
    critic: bool | None = _setting(SWITCH, "whether a value model is trained along")
    lora: bool | None = _setting(SWITCH, "whether only adapters are trained")
    dropout: float | None = _setting(BELOW_ONE, "of the policy while it trains")
    task: Literal["rl", "finetuning", "pretraining"] = _setting(
        _one_of("rl", "finetuning", "pretraining"), "the kind of training (default: rl)", default="rl"
    )
    host: Literal["transformers", "verl"] | None = _setting(_one_of("transformers", "verl"), "whose schedule it is")
    logs: tuple[Run, ...] = ()

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, kind.read(name, getattr(self, name)))

    @classmethod
    def of(cls, settings: Mapping[str, Any], logs: tuple[Run, ...] = ()) -> Plan:
        """The plan of settings by name, in any form that a file or a command line gives them."""
        for name in ("lr", "total_steps"):
            if settings.get(name) is None:
                raise ValueError(f"{name} is not known: give --{name.replace('_', '-')}, or a file that says it.")
        return cls(**settings, logs=logs)

    @property
    def updates_per_rollout(self) -> int | None:
        """Optimizer updates on each rollout; None if neither epochs nor mini-batches are said."""
        if self.epochs is None and self.mini_batches is None:
            return None
        return (self.epochs or 1) * (self.mini_batches or 1)

    @property
    def planned_warmup(self) -> int:
        """Steps of the warmup that the schedule has already: its steps, else its ratio as the host rounds it."""
        if (self.warmup_steps or 0) > 0:
            return int(self.warmup_steps or 0)
        return self.rounded((self.warmup_ratio or 0.0) * self.total_steps)

    def rounded(self, steps: float) -> int:
        """A share of the run, as the host rounds it."""
        return math.ceil(steps) if self.host == "transformers" else int(steps)

    @property
    def untuned_updates(self) -> int | None:
        """The untuned linear warmup of Ma & Yarats, 2 / (1 - beta2), in optimizer updates."""
        return None if self.beta2 is None else round(2.0 / (1.0 - self.beta2))

    @property
    def untuned_warmup(self) -> int | None:
        """The same in steps of the schedule."""
        if self.untuned_updates is None:
            return None
        return math.ceil(self.untuned_updates / (self.updates_per_step or self.updates_per_rollout or 1))

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are said, by name."""
        return {name: getattr(self, name) for name in KINDS if getattr(self, name) is not None}


KINDS: dict[str, Kind] = {f.name: f.metadata["kind"] for f in fields(Plan) if "kind" in f.metadata}
MEANINGS: dict[str, str] = {f.name: f.metadata["meaning"] for f in fields(Plan) if "kind" in f.metadata}
