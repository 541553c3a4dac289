"""What the reference policy asks of an environment: texts for its tokenizer and demonstrations to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from adaptive_warmup.ppo.environment import Environment


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a response. `own` says that the policy wrote it; else the environment inserted it."""

    text: str
    own: bool


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One episode to imitate. Only the policy's own segments are learnt."""

    prompt: str
    segments: tuple[Segment, ...]

    @property
    def response(self) -> str:
        """All segments, as `Environment.score` takes them."""
        return "".join(segment.text for segment in self.segments)


class Task(Environment, Protocol):
    """An environment that a reference policy can be made for."""

    @property
    def name(self) -> str:
        """Name and parameters: tasks with the same name give the same problems and demonstrations."""
        ...

    @property
    def tags(self) -> tuple[str, ...]:
        """Markup that the tokenizer keeps whole."""
        ...

    def corpus_texts(self) -> Sequence[str]:
        """Texts that hold all the words of the task, for the tokenizer to be trained on."""
        ...

    def demonstrations(self, count: int, seed: int, perfect: bool = False) -> list[Demonstration]:
        """Episodes on train problems, imperfect ones unless asked otherwise; the same seed gives the same ones."""
        ...
