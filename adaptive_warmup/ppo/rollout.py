"""Sampling episodes from a policy, all rows in lockstep under one KV cache.

At every position each row takes either the next token that the environment inserts or one that it samples. Sampling
is from the policy's full softmax, without top-p or top-k: the log-probabilities that PPO compares are those of the
full softmax, and of a truncated sampler's tokens the mean of k1 can go below zero, which as a KL penalty in the reward
pays the policy for it.

Shapes: B episodes, P prompt positions (padded on the left), T response positions (padded on the right), S = P + T,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adaptive_warmup.ppo.cache import cache_name, check_adapter, keeps_keys, make_room
from adaptive_warmup.ppo.dialogue import Dialogue, Episode, tokenise
from adaptive_warmup.ppo.environment import Environment, Problem, Turns
from adaptive_warmup.ppo.model import ValueHead, position_ids


@dataclass(frozen=True)
class Episodes:
    """Finished episodes, not scored yet.

    Attributes:
        problems: what was asked, B of them.
        responses: the text after the prompt, the environment's insertions included, the end-of-text token not.
        token_ids_BS: prompt and response.
        attention_mask_BS: 1 at real tokens, 0 at padding, as transformers takes it.
        response_mask_BT: True only at tokens that the policy sampled, those that ended its turns included.
        finished_B: False where the episode was cut at the limit of tokens.
        logprobs_BT: log-probabilities, in nats, of the tokens that the policy sampled, as it sampled them, in fp32.
            None where it computes in less than that: there they differ too much from what an update computes.
        values_BT: of the states in which they were sampled, in fp32, where a value head reads the policy's trunk. None
            without one, and where `logprobs_BT` is None.
    """

    problems: list[Problem]
    responses: list[str]
    token_ids_BS: Tensor
    attention_mask_BS: Tensor
    response_mask_BT: Tensor
    finished_B: Tensor
    logprobs_BT: Tensor | None
    values_BT: Tensor | None

    def scored(self, scores: Sequence[float]) -> Rollout:
        """The same with their scores, without any KL."""
        scores_B = torch.tensor(scores, dtype=torch.float32, device=self.token_ids_BS.device)
        return Rollout(**{field.name: getattr(self, field.name) for field in fields(self)}, scores_B=scores_B)


@dataclass(frozen=True)
class Rollout(Episodes):
    """Finished episodes with `scores_B`, the task's, without any KL."""

    scores_B: Tensor


def rollout(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    environment: Environment,
    problems: Sequence[Problem],
    *,
    max_response_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator,
    value_head: ValueHead | None = None,
) -> Rollout:
    """`sample_episodes`, scored by the environment."""
    episodes = sample_episodes(
        policy,
        tokenizer,
        environment,
        problems,
        max_response_tokens=max_response_tokens,
        temperature=temperature,
        generator=generator,
        value_head=value_head,
    )
    pairs = zip(episodes.problems, episodes.responses, strict=True)
    return episodes.scored([environment.score(problem, response) for problem, response in pairs])


@torch.no_grad()
def sample_episodes(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    environment: Turns,
    problems: Sequence[Problem],
    *,
    max_response_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator,
    value_head: ValueHead | None = None,
    rows: int | None = None,
) -> Episodes:
    """Samples one episode for each problem. It ends with an end-of-text token of the policy's, when the environment has
    no reply to a stop (or has given `max_turns`), or after `max_response_tokens`, inserted ones included.

    Args:
        generator: the only source of randomness, on the policy's device.
        value_head: a critic on the policy's trunk, whose values cost next to nothing while it samples.
        rows: episodes at a time, whose keys and values must fit into memory together; None for all.

    Raises:
        ValueError: a prompt has no tokens, or prompt and response do not fit the policy's positions.
    """
    device = policy.device
    prompts = tokenise(policy, tokenizer, [problem.prompt for problem in problems], max_response_tokens)
    dialogue = Dialogue(tokenizer, environment, _ends(policy))
    episodes = [Episode(problem) for problem in problems]
    prompt_width = max(map(len, prompts))
    prompt_ids_BP = torch.tensor([[dialogue.pad] * (prompt_width - len(p)) + p for p in prompts], device=device)
    lengths_B1 = torch.tensor([[len(p)] for p in prompts], device=device)
    prompt_mask_BP = (torch.arange(prompt_width, device=device) >= prompt_width - lengths_B1).long()

    training = policy.training
    policy.train(False)
    some = rows or len(episodes)
    try:
        parts = [
            _write(
                policy,
                dialogue,
                episodes[start : start + some],
                prompt_ids_BP[start : start + some],
                prompt_mask_BP[start : start + some],
                max_response_tokens,
                temperature,
                generator,
                value_head,
            )
            for start in range(0, len(episodes), some)
        ]
    finally:
        policy.train(training)

    length = max(len(episode.token_ids) for episode in episodes)
    response_ids_BT = torch.tensor([_fill(e.token_ids, length, dialogue.pad) for e in episodes], device=device)
    logprobs_BT, values_BT = (_joined(tensors, length) for tensors in zip(*parts, strict=True))
    written_BT = torch.tensor([_fill([1] * len(e.token_ids), length, 0) for e in episodes], device=device)
    return Episodes(
        problems=list(problems),
        responses=[dialogue.response(episode) for episode in episodes],
        token_ids_BS=torch.cat([prompt_ids_BP, response_ids_BT], dim=1),
        attention_mask_BS=torch.cat([prompt_mask_BP, written_BT], dim=1),
        response_mask_BT=torch.tensor([_fill(e.sampled, length, False) for e in episodes], device=device),
        finished_B=torch.tensor([episode.done for episode in episodes], device=device),
        logprobs_BT=logprobs_BT,
        values_BT=values_BT,
    )


def _joined(parts: Sequence[Tensor | None], length: int) -> Tensor | None:
    """One below the other, each filled up to the longest."""
    known = [pad(part, (0, length - part.shape[1])) for part in parts if part is not None]
    return torch.cat(known) if known else None


def _ends(policy: PreTrainedModel) -> list[int]:
    """Tokens that end a text besides the tokenizer's, as a checkpoint of chats names them.

    Of a bare config only a list: a single one may be a default, which means nothing in the vocabulary at hand.
    """
    generation = getattr(policy, "generation_config", None)
    if generation is None or generation._from_model_config:
        listed = getattr(policy.config.get_text_config(), "eos_token_id", None)
        return list(listed) if isinstance(listed, (list, tuple)) else []
    found = generation.eos_token_id
    return [found] if isinstance(found, int) else list(found or ())


def _write(
    policy: PreTrainedModel,
    dialogue: Dialogue,
    episodes: list[Episode],
    prompt_ids_BP: Tensor,
    prompt_mask_BP: Tensor,
    max_response_tokens: int,
    temperature: float,
    generator: torch.Generator,
    value_head: ValueHead | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Runs the episodes to their end, one forward of the policy for each position.

    Returns:
        `Episodes.logprobs_BT` and `Episodes.values_BT`.
    """
    check_adapter(policy)
    # Rows that are done go on reading padding: nobody looks at what they compute, so the mask need not know.
    mask_BS = pad(prompt_mask_BP, (0, max_response_tokens), value=1)
    positions_BS = position_ids(mask_BS)
    input_ids, cache, name, start = prompt_ids_BP, None, cache_name(policy), 0
    logprobs: list[Tensor] = []
    values: list[Tensor] = []
    for end in range(prompt_ids_BP.shape[1], mask_BS.shape[1]):
        output = policy(
            input_ids=input_ids,
            attention_mask=mask_BS[:, :end],
            position_ids=positions_BS[:, start:end],
            use_cache=True,
            logits_to_keep=1,
            output_hidden_states=value_head is not None,
            **{name: cache},
        )
        held = getattr(output, name, None)
        if not keeps_keys(held):
            raise ValueError(f"{type(policy).__name__} keeps no keys in its cache: give a policy with attention")
        if value_head is not None:
            if output.hidden_states[-1].dim() != 3:
                raise ValueError(
                    f"{type(policy).__name__} has no hidden states that a ValueHead reads: use a ValueModel"
                )
            values.append(value_head(output.hidden_states[-1][:, -1:]))
        sampled_B, logprobs_B = _sample(output.logits[:, -1], temperature, generator)
        logprobs.append(logprobs_B)
        next_B = [dialogue.advance(episode, token) for episode, token in zip(episodes, sampled_B.tolist(), strict=True)]
        if all(episode.done for episode in episodes):
            break
        input_ids = torch.tensor(next_B, device=policy.device).unsqueeze(1)
        if cache is None:
            make_room(held, mask_BS.shape[1])
        cache, start = held, end
    coarse = policy.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(policy.device.type)
    if output.logits.dtype != torch.float32 or coarse:  # logits may have been cast up, from states that are coarse
        return None, None
    return torch.stack(logprobs, dim=1), torch.cat(values, dim=1) if values else None


def _sample(logits_BV: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probabilities."""
    # What torch.multinomial does within, but a policy that has gone to NaN must not crash the run here: its updates
    # are skipped and counted.
    probabilities_BV = (logits_BV.float() / temperature).softmax(-1)
    sampled_B = (probabilities_BV / torch.empty_like(probabilities_BV).exponential_(generator=generator)).argmax(-1)
    return sampled_B, probabilities_BV.gather(-1, sampled_B.unsqueeze(-1)).squeeze(-1).log()


def _fill(items: list[int] | list[bool], length: int, filler: int | bool) -> list[int | bool]:
    return [*items, *[filler] * (length - len(items))]
