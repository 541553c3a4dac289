"""What the PPO loop asks of a task: problems, replies in mid-episode, and a score.

An episode is a prompt, then turns. The policy writes until one of `stops` appears in its text; the environment then
either inserts a reply, after which the policy writes on, or ends the episode. The policy's end-of-text token ends it
too. Inserted tokens are the environment's: the response mask keeps them out of every loss and out of the KL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Split = Literal["train", "eval"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One prompt with what is needed to score a response to it.

    Attributes:
        prompt: the text that the policy continues.
        answer: whatever `Environment.score` needs; never shown to the policy.
    """

    prompt: str
    answer: Any


class Turns(Protocol):
    """The course of an episode. Implementations hold no state of one, so any number of episodes may run at once."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end the policy's turn; empty where an episode is one turn, up to the end-of-text token."""
        ...

    @property
    def max_turns(self) -> int:
        """Replies given at most in one episode; the first stop after the last one ends it."""
        ...

    def reply(self, problem: Problem, response: str) -> str | None:
        """The text inserted after `response` (all turns so far), or None where the episode ends."""
        ...


class Environment(Turns, Protocol):
    """A task: episodes, their problems and their scores."""

    def sample(self, count: int, seed: int, split: Split = "train") -> list[Problem]:
        """`count` problems of the split; the same seed gives the same problems."""
        ...

    def score(self, problem: Problem, response: str) -> float:
        """The task reward of the whole response, without any KL term."""
        ...
