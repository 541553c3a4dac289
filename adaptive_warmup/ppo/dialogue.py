"""One episode in tokens: its prompt, who wrote what, when the policy's turn is over, what the environment inserts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adaptive_warmup.ppo.environment import Problem, Turns


@dataclass(slots=True)
class Episode:
    """One row: what stands after the prompt, who wrote it, and what the environment has yet to insert."""

    problem: Problem
    token_ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    inserting: deque[int] = field(default_factory=deque)
    turn_start: int = 0
    replies: int = 0
    done: bool = False
    ended: bool = False  # by a token that says so, which is none of the response

    def append(self, token: int, sampled: bool) -> None:
        """Write a token."""
        self.token_ids.append(token)
        self.sampled.append(sampled)


class Dialogue:
    """The environment's side of an episode, in tokens; the tokenizer's end-of-text, or one of `ends`, is its end.

    But where one of `ends` (a chat model's end of turn) completes a stop of the environment's, that is a stop.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, environment: Turns, ends: Iterable[int] = ()) -> None:
        self.tokenizer, self.environment = tokenizer, environment
        eos = tokenizer.eos_token_id
        self.ends = frozenset(ends) | ({eos} if eos is not None else set())
        self.pad: int = next((i for i in (tokenizer.pad_token_id, eos) if i is not None), 0)
        self.stop_tokens = _stop_tokens(tokenizer, len(tokenizer), tuple(environment.stops))

    def advance(self, episode: Episode, sampled: int) -> int:
        """Gives the episode its next token, the environment's where it is inserting, and returns it."""
        if episode.done:
            return self.pad
        if episode.inserting:
            episode.append(episode.inserting.popleft(), sampled=False)
            return episode.token_ids[-1]
        episode.append(sampled, sampled=True)
        if sampled in self.stop_tokens and self._turn_is_over(episode):
            self._reply(episode)
        elif sampled in self.ends:
            episode.done = episode.ended = True
        return sampled

    def response(self, episode: Episode) -> str:
        """The text so far, without the token by which the policy ended it."""
        return _decode(self.tokenizer, episode.token_ids[: -1 if episode.ended else None])

    def _turn_is_over(self, episode: Episode) -> bool:
        turn = _decode(self.tokenizer, episode.token_ids[episode.turn_start :])
        return any(stop in turn for stop in self.environment.stops)

    def _reply(self, episode: Episode) -> None:
        asked = episode.replies < self.environment.max_turns
        reply = self.environment.reply(episode.problem, self.response(episode)) if asked else None
        if reply is None:
            episode.done = True
            return
        episode.replies += 1
        episode.inserting.extend(self.tokenizer(reply, add_special_tokens=False)["input_ids"])
        episode.turn_start = len(episode.token_ids) + len(episode.inserting)


@lru_cache(maxsize=8)
def _stop_tokens(tokenizer: PreTrainedTokenizerBase, size: int, stops: tuple[str, ...]) -> frozenset[int]:
    """The tokens that may complete a stop: only after one of them is a row's turn decoded and searched.

    `size` is the tokenizer's, so that adding tokens to it misses the cache.
    """
    if not stops:
        return frozenset()
    if not all(stops):
        raise ValueError(f"the environment's stops {stops!r} have an empty one: leave it out")
    # Decoded behind a letter, since some tokenizers drop the space that begins a text. A token that ends in the middle
    # of a character decodes to U+FFFD, and may complete a stop that does not end in ASCII.
    last = {stop[-1] for stop in stops}
    last |= {"\ufffd"} if any(ord(character) > 127 for character in last) else set()
    anchor: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    begin = len(_decode(tokenizer, anchor))
    return frozenset(i for i in range(size) if last.intersection(_decode(tokenizer, [*anchor, i])[begin:]))


def _decode(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def tokenise(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_response_tokens: int
) -> list[list[int]]:
    """The tokens of the prompts.

    Raises:
        ValueError: there are none, one has no tokens, or it leaves no room for the response.
    """
    if not prompts:
        raise ValueError("rollout got no problems: give it at least one")
    found: list[list[int]] = tokenizer(list(prompts))["input_ids"]
    if tokenizer("")["input_ids"][-1:] == [tokenizer.eos_token_id]:  # it ends every text, and this one goes on
        found = [ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids for ids in found]
    for prompt, token_ids in zip(prompts, found, strict=True):
        if not token_ids:
            raise ValueError(f"the prompt {prompt!r} has no tokens: a policy needs at least one to continue")
    longest, limit = max(map(len, found)), getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest + max_response_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and max_response_tokens={max_response_tokens} do not fit the policy's "
            f"{limit} positions: shorten one, or raise max_position_embeddings"
        )
    return found
