"""Scores of finished episodes: by reward functions in TRL's form, or by an environment."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from adaptive_warmup.integrations.ppo_trainer.prompts import Row
from adaptive_warmup.ppo.environment import Environment, Problem, Turns
from adaptive_warmup.ppo.rollout import Episodes

_log = logging.getLogger("adaptive_warmup")
RewardFunction = Callable[..., Sequence[float | None]]


class OneTurn:
    """Those of plain completions: nothing is inserted."""

    stops: tuple[str, ...] = ()
    max_turns = 0

    def reply(self, problem: Problem, response: str) -> str | None:
        """Nothing."""
        return None


class Scores:
    """Scores rollouts; the sum of the weighted rewards, less the penalty where a completion was cut.

    Args:
        functions: reward functions; empty where an environment scores.
        environment: it.
        weights: of the functions.
        penalty: for a completion that was cut.

    Raises:
        ValueError, TypeError: neither functions nor environment, or both; a function that cannot be called; weights
            that do not fit.
    """

    def __init__(
        self,
        functions: RewardFunction | Sequence[RewardFunction] | None,
        environment: Environment | None,
        weights: Sequence[float] | None,
        penalty: float | None,
    ) -> None:
        if (not callable(functions) and not functions) == (environment is None):
            raise ValueError(
                f"reward_funcs={functions!r} and environment={environment!r}: give one of the two, functions"
                " f(prompts, completions, **columns) -> list of floats, or an Environment that scores"
            )
        listed = [functions] if callable(functions) or isinstance(functions, str) else list(functions or ())
        for function in listed:
            if not callable(function):
                raise TypeError(f"reward_funcs has {function!r}: give functions, or leave it out")
            if isinstance(function, nn.Module):
                raise TypeError(f"reward_funcs has a {type(function).__name__}: give a function that asks the model")
        if weights is not None and len(weights) != len(listed):
            raise ValueError(f"reward_weights={weights!r}: give {len(listed)} of them, one for each reward function")
        if not all(map(math.isfinite, weights or ())):
            raise ValueError(f"reward_weights={weights!r}: give finite numbers")
        self.functions, self.weights, self.penalty = listed, weights or [1.0] * len(listed), penalty or 0.0
        self._names = _names(listed)
        self.environment = environment
        self.turns: Turns = environment or OneTurn()

    def __call__(self, episodes: Episodes, state: Any) -> tuple[list[float], dict[str, list[float]]]:
        """The scores, and by its metric's name the rewards of each function, without those that it left out (None).

        Raises:
            TypeError, ValueError: a function returns no list of numbers, or one of another length.
        """
        if self.environment is None:
            given = _given(episodes, state)
            found = [_rewards(function, given, len(episodes.problems)) for function in self.functions]
            columns, rows = dict(zip(self._names, found, strict=True)), list(zip(*found, strict=True))
            weighted = (zip(self.weights, row, strict=True) for row in rows)
            scores = [sum(weight * reward for weight, reward in row if reward is not None) for row in weighted]
        else:
            columns, pairs = {}, zip(episodes.problems, episodes.responses, strict=True)
            who = f"the environment {type(self.environment).__name__}"
            told = _numbers(who, [self.environment.score(problem, response) for problem, response in pairs])
            rows, scores = [(score,) for score in told], [0.0 if score is None else score for score in told]
        if without := sum(all(reward is None for reward in row) for row in rows):
            words = "%d of %d completions have no reward but None, which counts as 0: give each a number"
            _log.warning(words, without, len(rows))
        cut = [not finished for finished in episodes.finished_B.tolist()]
        known = {name: [reward for reward in column if reward is not None] for name, column in columns.items()}
        return [score - self.penalty * missing for score, missing in zip(scores, cut, strict=True)], known


def _given(episodes: Episodes, state: Any) -> dict[str, Any]:
    """What TRL gives a reward function: prompts and completions as the dataset has them, and its other columns."""
    rows = [p.answer if isinstance(p.answer, Row) else {"prompt": p.prompt, "answer": p.answer}
            for p in episodes.problems]  # fmt: skip
    length = episodes.response_mask_BT.shape[1]
    written = episodes.attention_mask_BS[:, -length:].sum(-1).tolist()
    token_ids = [ids[:n] for ids, n in zip(episodes.token_ids_BS[:, -length:].tolist(), written, strict=True)]
    completions = [text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
                   for row, text in zip(rows, episodes.responses, strict=True)]  # fmt: skip
    names = dict.fromkeys(name for row in rows for name in row if name != "prompt")  # in a list they may differ
    columns = {name: [row.get(name) for row in rows] for name in names}
    prompts = [row["prompt"] for row in rows]
    own = {"prompts": prompts, "completions": completions, "completion_ids": token_ids, "trainer_state": state}
    return columns | own


def _rewards(function: RewardFunction, given: dict[str, Any], count: int) -> list[float | None]:
    rewards = _numbers(f"the reward function {_name(function)}", function(**given))
    if len(rewards) != count:
        raise ValueError(
            f"the reward function {_name(function)} returned {len(rewards)} rewards for {count} completions: return one"
            " for each"
        )
    return rewards


def _numbers(who: str, found: Any) -> list[float | None]:
    """As floats; of one that is not finite there is a word, as it costs the updates of the whole rollout."""
    try:
        if isinstance(found, (str, Mapping)):  # whose characters, or keys, may be numbers
            raise TypeError
        numbers = [None if one is None else float(one) for one in found]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{who} returned {found!r}: return a list of numbers") from error
    broken = [one for one in numbers if one is not None and not math.isfinite(one)]
    if broken:
        words = "%s gave %s for %d of %d completions: no update is made with them; give a finite number, or None"
        _log.warning(words, who, broken[0], len(broken), len(numbers))
    return numbers


def _names(functions: Sequence[RewardFunction]) -> list[str]:
    """For their metrics, with a number where several have the same name."""
    found: list[str] = []
    for name in map(_name, functions):
        numbered = (f"{name}_{n}" for n in itertools.count(2))
        found.append(next(one for one in itertools.chain([name], numbered) if one not in found))
    return found


def _name(function: RewardFunction) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
