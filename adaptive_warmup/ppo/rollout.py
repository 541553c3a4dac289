"""Sampling episodes from a policy, all rows in lockstep under one KV cache.

At every position each row takes either the next token that the environment inserts or one that it samples. Sampling
is from the policy's full softmax, without top-p or top-k: the log-probabilities that PPO compares are those of the
full softmax, and of a truncated sampler's tokens the mean of k1 can go below zero, which as a KL penalty in the reward
pays the policy for it.

Shapes: B episodes, P prompt positions (padded on the left), T response positions (padded on the right), S = P + T,
V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adaptive_warmup.ppo.environment import Environment, Problem
from adaptive_warmup.ppo.model import position_ids


@dataclass(frozen=True, slots=True)
class Rollout:
    """Finished episodes.

    Attributes:
        problems: what was asked, B of them.
        responses: the text after the prompt, the environment's insertions included, the end-of-text token not.
        token_ids_BS: prompt and response.
        attention_mask_BS: 1 at real tokens, 0 at padding, as transformers takes it.
        response_mask_BT: True only at tokens that the policy sampled, those that ended its turns included.
        scores_B: the environment's scores, without any KL.
    """

    problems: list[Problem]
    responses: list[str]
    token_ids_BS: Tensor
    attention_mask_BS: Tensor
    response_mask_BT: Tensor
    scores_B: Tensor


@torch.no_grad()
def rollout(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    environment: Environment,
    problems: Sequence[Problem],
    *,
    max_response_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator,
) -> Rollout:
    """Samples one episode for each problem. It ends with the policy's end-of-text token, when the environment has no
    reply to a stop (or has given `max_turns`), or after `max_response_tokens`, inserted ones included.

    Args:
        generator: the only source of randomness, on the policy's device.

    Raises:
        ValueError: a prompt has no tokens, or prompt and response do not fit the policy's positions.
    """
    prompts = _tokenise(policy, tokenizer, problems, max_response_tokens)
    dialogue = _Dialogue(tokenizer, environment)
    episodes = [_Episode(problem) for problem in problems]
    prompt_width = max(map(len, prompts))
    prompt_ids_BP = torch.tensor([[dialogue.pad] * (prompt_width - len(p)) + p for p in prompts], device=policy.device)
    lengths_B1 = torch.tensor([[len(p)] for p in prompts], device=policy.device)
    prompt_mask_BP = (torch.arange(prompt_width, device=policy.device) >= prompt_width - lengths_B1).long()

    training = policy.training
    policy.train(False)
    try:
        _write(policy, dialogue, episodes, prompt_ids_BP, prompt_mask_BP, max_response_tokens, temperature, generator)
    finally:
        policy.train(training)

    responses = [dialogue.response(episode) for episode in episodes]
    scores = [environment.score(problem, text) for problem, text in zip(problems, responses, strict=True)]
    length = max(len(episode.token_ids) for episode in episodes)
    response_ids_BT = torch.tensor([_fill(e.token_ids, length, dialogue.pad) for e in episodes], device=policy.device)
    written_BT = torch.tensor([_fill([1] * len(e.token_ids), length, 0) for e in episodes], device=policy.device)
    return Rollout(
        problems=list(problems),
        responses=responses,
        token_ids_BS=torch.cat([prompt_ids_BP, response_ids_BT], dim=1),
        attention_mask_BS=torch.cat([prompt_mask_BP, written_BT], dim=1),
        response_mask_BT=torch.tensor([_fill(e.sampled, length, False) for e in episodes], device=policy.device),
        scores_B=torch.tensor(scores, dtype=torch.float32, device=policy.device),
    )


def _write(
    policy: PreTrainedModel,
    dialogue: _Dialogue,
    episodes: list[_Episode],
    prompt_ids_BP: Tensor,
    prompt_mask_BP: Tensor,
    max_response_tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> None:
    """Runs the episodes to their end, one forward of the policy for each position."""
    # Rows that are done go on reading padding: nobody looks at what they compute, so the mask need not know.
    mask_BS = torch.nn.functional.pad(prompt_mask_BP, (0, max_response_tokens), value=1)
    positions_BS = position_ids(mask_BS)
    input_ids, cache, start = prompt_ids_BP, None, 0
    for end in range(prompt_ids_BP.shape[1], mask_BS.shape[1]):
        output = policy(
            input_ids=input_ids,
            attention_mask=mask_BS[:, :end],
            position_ids=positions_BS[:, start:end],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        sampled_B = _sample(output.logits[:, -1], temperature, generator).tolist()
        next_B = [dialogue.advance(episode, token) for episode, token in zip(episodes, sampled_B, strict=True)]
        if all(episode.done for episode in episodes):
            break
        input_ids = torch.tensor(next_B, device=policy.device).unsqueeze(1)
        cache, start = output.past_key_values, end


def _sample(logits_BV: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    # What torch.multinomial does within, but a policy that has gone to NaN must not crash the run here: its updates
    # are skipped and counted.
    probabilities_BV = (logits_BV.float() / temperature).softmax(-1)
    return (probabilities_BV / torch.empty_like(probabilities_BV).exponential_(generator=generator)).argmax(-1)


@dataclass(slots=True)
class _Episode:
    """One row: what stands after the prompt, who wrote it, and what the environment has yet to insert."""

    problem: Problem
    token_ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    inserting: deque[int] = field(default_factory=deque)
    turn_start: int = 0
    replies: int = 0
    done: bool = False

    def append(self, token: int, sampled: bool) -> None:
        self.token_ids.append(token)
        self.sampled.append(sampled)


class _Dialogue:
    """The environment's side of an episode, in tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, environment: Environment) -> None:
        self.tokenizer, self.environment = tokenizer, environment
        self.eos: int | None = tokenizer.eos_token_id
        self.pad: int = next((i for i in (tokenizer.pad_token_id, self.eos) if i is not None), 0)
        self.stop_tokens = _stop_tokens(tokenizer, len(tokenizer), tuple(environment.stops))

    def advance(self, episode: _Episode, sampled: int) -> int:
        """Gives the episode its next token, the environment's where it is inserting, and returns it."""
        if episode.done:
            return self.pad
        if episode.inserting:
            episode.append(episode.inserting.popleft(), sampled=False)
            return episode.token_ids[-1]
        episode.append(sampled, sampled=True)
        if sampled == self.eos:
            episode.done = True
        elif sampled in self.stop_tokens and self._turn_is_over(episode):
            self._reply(episode)
        return sampled

    def response(self, episode: _Episode) -> str:
        ended = bool(episode.token_ids) and episode.sampled[-1] and episode.token_ids[-1] == self.eos
        return _decode(self.tokenizer, episode.token_ids[: -1 if ended else None])

    def _turn_is_over(self, episode: _Episode) -> bool:
        turn = _decode(self.tokenizer, episode.token_ids[episode.turn_start :])
        return any(stop in turn for stop in self.environment.stops)

    def _reply(self, episode: _Episode) -> None:
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
    # Decoded behind a letter, since some tokenizers drop the space that begins a text. A token that ends in the middle
    # of a character decodes to U+FFFD, and may complete a stop that does not end in ASCII.
    last = {stop[-1] for stop in stops}
    last |= {"\ufffd"} if any(ord(character) > 127 for character in last) else set()
    anchor: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    begin = len(_decode(tokenizer, anchor))
    return frozenset(i for i in range(size) if last.intersection(_decode(tokenizer, [*anchor, i])[begin:]))


def _decode(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _fill(items: list[int] | list[bool], length: int, filler: int | bool) -> list[int | bool]:
    return [*items, *[filler] * (length - len(items))]


def _tokenise(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    max_response_tokens: int,
) -> list[list[int]]:
    if not problems:
        raise ValueError("rollout got no problems: give it at least one")
    prompts: list[list[int]] = tokenizer([problem.prompt for problem in problems])["input_ids"]
    for problem, prompt in zip(problems, prompts, strict=True):
        if not prompt:
            raise ValueError(f"the prompt {problem.prompt!r} has no tokens: a policy needs at least one to continue")
    longest, limit = max(map(len, prompts)), getattr(policy.config, "max_position_embeddings", None)
    if limit is not None and longest + max_response_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and max_response_tokens={max_response_tokens} do not fit the policy's "
            f"{limit} positions: shorten one, or raise max_position_embeddings"
        )
    return prompts
