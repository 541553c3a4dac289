"""Questions about geography, one or two searches deep, with entities held out for evaluation."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from adaptive_warmup.ppo.environment import Problem, Split
from adaptive_warmup.ppo.tasks.geography import City, Country, geography

HELD_OUT = 8
"""One entity in so many is asked about in evaluation only."""

OF_COUNTRY = {
    "capital": "What is the capital of {}?",
    "continent": "Which continent is {} in?",
    "currency": "Which currency does {} use?",
}
OF_CITY = {"country": "Which country is {} in?"}
OF_CITY_VIA_COUNTRY = {
    "capital": "What is the capital of the country of {}?",
    "continent": "Which continent is the city {} in?",
    "currency": "Which currency is used in {}?",
}


@dataclass(frozen=True, slots=True)
class Question(Problem):
    """A problem with its solution.

    Attributes:
        path: the entities to look up, in order; the document of the last one holds the answer.
        field: which of the last entity's facts is asked for.
        facts: all that the document of the last entity says.
    """

    path: tuple[str, ...]
    field: str
    facts: dict[str, str]


def sample_questions(count: int, seed: int, split: Split) -> list[Question]:
    """`count` questions with replacement: first a uniform kind of question, then a uniform one of that kind."""
    if split not in ("train", "eval"):
        raise ValueError(f'split must be "train" or "eval", got {split!r}')
    rng = random.Random(f"{split} {seed}")
    kinds = questions(split)
    return [rng.choice(rng.choice(kinds)) for _ in range(count)]


@cache
def questions(split: Split) -> tuple[tuple[Question, ...], ...]:
    """All questions of a split, by kind. A question is for evaluation if it passes through a held-out entity."""
    kinds: dict[tuple[str, int, bool], list[Question]] = {}
    for question in _all_questions():
        if ("eval" if _held_out(question) else "train") == split:
            kind = (question.field, len(question.path), question.path[0] in geography().countries)
            kinds.setdefault(kind, []).append(question)
    return tuple(map(tuple, kinds.values()))


def _all_questions() -> Iterator[Question]:
    for entity in geography().entities:
        for question in _about(entity):
            if geography().ambiguous.isdisjoint(name.lower() for name in question.path):
                yield question


def _about(entity: Country | City) -> Iterator[Question]:
    yield from _asked(OF_COUNTRY if isinstance(entity, Country) else OF_CITY, (entity.name,), entity)
    if isinstance(entity, City):
        country = geography().countries[entity.country]
        yield from _asked(OF_CITY_VIA_COUNTRY, (entity.name, country.name), country)


def _asked(texts: dict[str, str], path: tuple[str, ...], last: Country | City) -> Iterator[Question]:
    for field, text in texts.items():
        yield Question(text.format(path[0]), last.facts[field], path, field, last.facts)


def _held_out(question: Question) -> bool:
    return any(zlib.crc32(name.encode()) % HELD_OUT == 0 for name in question.path)
