"""An expert on geography, more or less careless, whose episodes a reference policy imitates."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from adaptive_warmup.ppo.tasks.geography import geography
from adaptive_warmup.ppo.tasks.questions import Question
from adaptive_warmup.ppo.tasks.task import Demonstration, Segment

INVENTED = 0.8
"""Share of the demonstrations that are about places that do not exist. Without them a small policy learns the facts by
heart and fails on the held-out places; with them it learns to copy."""


def turns(question: Question, mistakes: float, rng: random.Random) -> Iterator[str]:
    """What an expert writes who, at each decision, gets it wrong with probability `mistakes`."""
    for hop, entity in enumerate(question.path):
        if rng.random() < mistakes:
            yield from rng.choice(_wrong_turns(question, hop))
            return
        yield _search(entity)
    careless = rng.random() < mistakes
    yield _answer(rng.choice(_wrong_facts(question)) if careless else question.answer)


def renamed(demonstration: Demonstration, question: Question, rng: random.Random) -> Demonstration:
    """The same episode about a place that does not exist: each name is replaced throughout by an invented one."""
    names = [*question.path, *question.facts.values()]
    invented = {name: _invented_name(rng) for name in names}
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})\b")

    def rename(text: str) -> str:
        return pattern.sub(lambda match: invented[match[0]], text)

    segments = (Segment(rename(segment.text), segment.own) for segment in demonstration.segments)
    return Demonstration(rename(demonstration.prompt), tuple(segments))


def _invented_name(rng: random.Random) -> str:
    """A city's name, or the head of one and the tail of another."""
    first, second = (rng.choice(geography().cities).name for _ in range(2))
    if rng.random() < 0.5:
        return first
    return first[: rng.randint(1, 5)].strip(" -'") + second[-rng.randint(2, 5) :].lower().strip(" -'")


def _wrong_turns(question: Question, hop: int) -> list[list[str]]:
    """Instead of the next search: stop with the name that it should have been for, at once or after a useless search.

    Every mistake copies something, as every right step does: invented answers would teach a policy to write noise.
    """
    stop = _answer(question.path[hop])
    useless = _search(question.field if hop == 0 else question.path[hop - 1])
    return [[stop], [useless, stop]]


def _wrong_facts(question: Question) -> list[str]:
    """What else the last document says."""
    return [fact for fact in question.facts.values() if fact != question.answer] or [question.path[-1]]


def _search(query: str) -> str:
    return f"<search> {query}</search>"


def _answer(text: str) -> str:
    return f"<answer> {text}</answer>"
