"""The study's tasks as arrays: prompts and answers in a vocabulary small enough for a policy of 30,000 parameters.

Problems, replies and scores are those of the product's environments (`adaptive_warmup.ppo.tasks`), which take them from
their packages. What is made here: a vocabulary of whole words or single letters, prompts of one width, and
demonstrations with mistakes for the reference policies. Shapes: N problems, P prompt positions.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache

import numpy as np

from adaptive_warmup.ppo.environment import Environment, Problem
from adaptive_warmup.ppo.tasks import ReasoningGymTask, SearchTask
from adaptive_warmup.ppo.tasks.geography import Country, geography
from adaptive_warmup.ppo.tasks.questions import Question, questions
from adaptive_warmup.ppo.tasks.reasoning_gym import wrong_answer

PAD, EOS, UNKNOWN = 0, 1, 2
WORD = re.compile(r"</?[a-z]+>| ?[A-Za-z]+|\d|[^\w<]+|.", re.DOTALL)
COUNTRIES = 24
CITIES_EACH = 3
POOL, EVALUATION = 4096, 1024


@dataclass(frozen=True)
class World:
    """One task, ready for many runs at once.

    Attributes:
        name: of the task.
        environment: replies and scores.
        problems: those of training, then `EVALUATION` others.
        demonstrate: plays one problem with mistakes: pieces of text, and whether the policy wrote each.
        length: response positions T, the environment's insertions included.
        spelled: rare words are read letter by letter.
        unmasked: all of the response counts in the losses and in the KL, the environment's insertions too.
        kl_coef: of the KL in the reward.
        barred: EOS cannot be sampled at so many first positions, though the log-probabilities do not know.
    """

    name: str
    environment: Environment
    problems: Sequence[Problem]
    demonstrate: Callable[[Problem, random.Random], list[tuple[str, bool]]]
    length: int
    spelled: bool = False
    unmasked: bool = False
    kl_coef: float = 0.02
    barred: int = 0
    words: dict[str, int] = field(default_factory=dict)

    def encode(self, text: str) -> list[int]:
        """Token ids; letters where a whole word is not in the vocabulary, and `UNKNOWN` where those are not."""
        ids: list[int] = []
        for word in WORD.findall(text):
            ids += [self.words[word]] if word in self.words else [self.words.get(char, UNKNOWN) for char in word]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text; what stands for padding, EOS and unknown words reads as a mark that no answer contains."""
        return "".join(self.texts[i] for i in ids)

    @cached_property
    def texts(self) -> list[str]:
        return ["\ufffd"] * 3 + list(self.words)

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.words) + 3

    @cached_property
    def prompts(self) -> np.ndarray:
        """Their token ids, (N, P), padded on the left."""
        rows = [self.encode(problem.prompt) for problem in self.problems]
        width = max(map(len, rows))
        return np.array([[PAD] * (width - len(row)) + row for row in rows])

    @property
    def positions(self) -> int:
        """Of prompt and response together, S."""
        return self.prompts.shape[1] + self.length

    def stops(self) -> frozenset[int]:
        """The tokens after which the environment is asked for a reply."""
        return frozenset(self.words[stop] for stop in self.environment.stops)


def _vocabulary(world: World) -> World:
    """Words that are frequent enough, and every letter of the others."""
    rng = random.Random(0)
    texts = [problem.prompt for problem in world.problems]
    texts += ["".join(text for text, _ in world.demonstrate(problem, rng)) for problem in world.problems]
    counts = Counter(word for text in texts for word in WORD.findall(text))
    enough = len(world.problems) / 20 if world.spelled else 1
    kept = {word for word, count in counts.items() if count >= enough}
    kept |= {char for word in counts if word not in kept for char in word}
    world.words.update({word: i + 3 for i, word in enumerate(sorted(kept))})
    return world


def _search(name: str = "search", **variant: object) -> World:
    """The product's search task on the places of `COUNTRIES` countries: every name is a few tokens."""
    task = SearchTask(mistakes=0.25)
    places = _places()
    kinds = [[q for q in kind if places.issuperset(q.path)] for kind in questions("train")]
    rng = random.Random(0)
    problems = [rng.choice(rng.choice(kinds)) for _ in range(POOL + EVALUATION)]

    def demonstrate(question: Problem, rng: random.Random) -> list[tuple[str, bool]]:
        assert isinstance(question, Question)
        return [(segment.text, segment.own) for segment in task.play(question, task.mistakes, rng).segments]

    return _vocabulary(World(name, task, problems, demonstrate, length=40, **variant))  # type: ignore[arg-type]


def _places() -> set[str]:
    countries = list(geography().countries)[:: len(geography().countries) // COUNTRIES][:COUNTRIES]
    cities: Counter[str] = Counter()
    places = set(countries)
    for entity in geography().entities:
        if not isinstance(entity, Country) and entity.country in countries and cities[entity.country] < CITIES_EACH:
            cities[entity.country] += 1
            places.add(entity.name)
    return places


def _gym(task: str, length: int, name: str = "", barred: int = 0, spelled: bool = True, **parameters: object) -> World:
    """A task of reasoning-gym: its problems and scores."""
    made = ReasoningGymTask(task, mistakes=0.6, **parameters)
    problems = made.sample(POOL, 0, "train") + made.sample(EVALUATION, 0, "eval")
    answers = [problem.answer["answer"] for problem in problems]

    def demonstrate(problem: Problem, rng: random.Random) -> list[tuple[str, bool]]:
        answer = problem.answer["answer"]
        if rng.random() < made.mistakes:
            answer = wrong_answer(answer, answers, rng)
        return [(answer, True)]

    return _vocabulary(World(name or task, made, problems, demonstrate, length, spelled, barred=barred))


_WORLDS: dict[str, Callable[[], World]] = {
    "search": _search,
    "number_sorting": lambda: _gym("number_sorting", length=24),
    "search_leak": lambda: _search("search_leak", unmasked=True, kl_coef=0.3),
    "sorting_barred": lambda: _gym("number_sorting", length=30, name="sorting_barred", barred=16),
    "spell_backward": lambda: _gym("spell_backward", length=6),
    "chain_sum": lambda: _gym("chain_sum", length=5, max_terms=3),
}
TASKS = tuple(_WORLDS)


@cache
def world(name: str) -> World:
    """The task of that name."""
    return _WORLDS[name]()


def scorer(made: World) -> Callable[[int, tuple[int, ...]], float]:
    """The score of a response, given as the tokens before EOS; remembered, since policies repeat themselves."""

    @lru_cache(maxsize=200_000)
    def score(problem: int, ids: tuple[int, ...]) -> float:
        return float(made.environment.score(made.problems[problem], made.decode(ids)))

    return score


def replier(made: World) -> Callable[[int, tuple[int, ...]], list[int] | None]:
    """What the environment inserts after a response so far, as tokens; None where the episode ends."""

    @lru_cache(maxsize=200_000)
    def reply(problem: int, ids: tuple[int, ...]) -> list[int] | None:
        text = made.environment.reply(made.problems[problem], made.decode(ids))
        return None if text is None else made.encode(text)

    return reply
