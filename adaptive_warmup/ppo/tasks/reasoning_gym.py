"""Any task of the `reasoning-gym` package as an environment of one turn: its generators, its scores."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from adaptive_warmup.ppo.environment import Problem, Split
from adaptive_warmup.ppo.tasks.task import Demonstration, Segment

INSTALL = 'tasks of reasoning-gym need that package: run `pip install "adaptive-warmup[gym]"`'
GENERATOR_SEED = 0
PROBLEMS = 20_000


@dataclass(frozen=True, slots=True)
class Preset:
    """What makes a task small enough for a small policy.

    Attributes:
        parameters: of the package's generator.
        lines: how many lines of the question are shown, where those after them say the same in every problem.
    """

    parameters: dict[str, Any] = field(default_factory=dict)
    lines: int | None = None


PRESETS = {
    "chain_sum": Preset({"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}),
    "number_sorting": Preset(
        {"min_numbers": 3, "max_numbers": 3, "max_decimals": 0, "min_value": 0, "max_value": 99}, lines=1
    ),
    "spell_backward": Preset({"min_word_len": 3, "max_word_len": 4}),
}


class ReasoningGymTask:
    """The task that `reasoning_gym.create_dataset` calls `task`.

    The package makes each problem from a number; even ones are for train, odd ones for eval. (Where a task has few
    problems, the same one may come from both.)

    Args:
        task: its name in the package.
        mistakes: probability that a demonstration gives a wrong answer; 0 for perfect ones.
        parameters: of the package's generator, laid over those of `PRESETS`.

    Raises:
        ImportError: where reasoning-gym is not installed, with what to install.
        ValueError: where the package knows no such task, with names that it does; or does not take the parameters.
    """

    stops: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    max_turns = 0

    def __init__(self, task: str, mistakes: float = 0.6, **parameters: Any) -> None:
        try:
            from reasoning_gym import create_dataset
            from reasoning_gym.factory import DATASETS
        except ImportError as error:
            raise ImportError(INSTALL) from error
        if task not in DATASETS:
            near = get_close_matches(task, ["search", *DATASETS])
            hint = f"take search, or one of reasoning-gym's, such as {', '.join(PRESETS)}"
            hint = f"did you mean one of: {', '.join(near)}?" if near else hint
            raise ValueError(f"there is no task {task!r}; {hint}")
        if not 0 <= mistakes <= 1:
            raise ValueError(f"mistakes is a probability and must be in [0, 1], got {mistakes}")
        preset = PRESETS.get(task, Preset())
        self.task, self.mistakes, self.lines = task, mistakes, preset.lines
        self.parameters = preset.parameters | parameters
        try:
            self.dataset = create_dataset(task, seed=GENERATOR_SEED, size=PROBLEMS, **self.parameters)
        except (AssertionError, TypeError) as error:
            raise ValueError(f"reasoning-gym's {task} does not take {self.parameters}: {error}") from error

    @property
    def name(self) -> str:
        """What tells this task's demonstrations and prompts from another's."""
        return f"{self.task}-{self.mistakes}-{json.dumps(self.parameters, sort_keys=True)}"

    def sample(self, count: int, seed: int, split: Split = "train") -> list[Problem]:
        """`count` problems of the package's generator; `answer` holds its whole entry."""
        if split not in ("train", "eval"):
            raise ValueError(f'split must be "train" or "eval", got {split!r}')
        rng = random.Random(f"{split} {seed}")
        entries = (self.dataset[2 * rng.randrange(PROBLEMS // 2) + (split == "eval")] for _ in range(count))
        return [Problem(self._prompt(entry["question"]), entry) for entry in entries]

    def reply(self, problem: Problem, response: str) -> str | None:
        """None: the policy's one turn is the answer."""
        return None

    def score(self, problem: Problem, response: str) -> float:
        """What the package gives for the whole response as an answer, in [0, 1] for nearly all tasks."""
        try:
            return float(self.dataset.score_answer(answer=response.strip(), entry=problem.answer))
        except Exception:  # some of the package's scores trip over what cannot be parsed as an answer
            return 0.0

    def corpus_texts(self) -> list[str]:
        """Train problems with their answers."""
        return [problem.prompt + _truth(problem) for problem in self.sample(1000, seed=0)]

    def demonstrations(self, count: int, seed: int, perfect: bool = False) -> list[Demonstration]:
        """Train problems with the right answer or, unless `perfect`, with probability `mistakes` a wrong one."""
        rng = random.Random(f"demonstrations {seed}")
        problems = self.sample(count, rng.getrandbits(32))
        answers = [_truth(problem) for problem in problems]
        mistakes = 0.0 if perfect else self.mistakes
        written = [wrong_answer(answer, answers, rng) if rng.random() < mistakes else answer for answer in answers]
        return [
            Demonstration(problem.prompt, (Segment(answer, own=True),))
            for problem, answer in zip(problems, written, strict=True)
        ]

    def _prompt(self, question: str) -> str:
        return "\n".join(question.strip().split("\n")[: self.lines]) + "\n"


def _truth(problem: Problem) -> str:
    answer = problem.answer["answer"]
    if not isinstance(answer, str):
        task = problem.answer["metadata"]["source_dataset"]
        raise ValueError(f"reasoning-gym's {task} gives no answers to demonstrate: choose another task")
    return answer


def wrong_answer(answer: str, answers: list[str], rng: random.Random) -> str:
    """The answer to another problem, or the right one with two of its characters swapped."""
    if len(answer) < 2 or rng.random() < 0.5:
        return rng.choice(answers)
    characters = list(answer)
    i, j = rng.sample(range(len(answer)), 2)
    characters[i], characters[j] = characters[j], characters[i]
    return "".join(characters)
