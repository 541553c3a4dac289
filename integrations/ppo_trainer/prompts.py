"""From rows of a dataset to problems, and which rows each rollout takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from adaptive_warmup.ppo.environment import Problem
from adaptive_warmup.ppo.generators import permutation
from adaptive_warmup.quoting import plural

_log = logging.getLogger("adaptive_warmup")


class Row(dict[str, Any]):
    """A row of a dataset, as the answer of the problem that is made of it."""


class RolloutSampler(Sampler[int]):
    """The rows of each rollout, as often as micro-batches are made of it, so that a Trainer counts these as its own.

    Args:
        rows: of the dataset.
        episodes: of a rollout, over all processes. What is left of an epoch that fills no rollout is left out.
        repeats: micro-batches that are made of a rollout.
        seed: of the orders, one for each epoch.
        epoch: says which epoch begins.
    """

    def __init__(self, rows: int, episodes: int, repeats: int, seed: int, epoch: Callable[[int], int]) -> None:
        if rows < episodes:
            raise ValueError(
                f"train_dataset has {plural(rows, 'prompt')}, and a rollout takes {episodes}: give more prompts, or"
                " lower per_device_train_batch_size, gradient_accumulation_steps or num_mini_batches"
            )
        self.rows, self.episodes, self.repeats, self.seed, self.epoch = rows, episodes, repeats, seed, epoch

    def __len__(self) -> int:
        return self.rows // self.episodes * self.episodes * self.repeats

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch(self.rows // self.episodes)
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * epoch)
        order = permutation(self.rows, generator).tolist()
        for start in range(0, self.rows - self.episodes + 1, self.episodes):
            for _ in range(self.repeats):
                yield from order[start : start + self.episodes]


def check_dataset(dataset: Any, name: str, scored: bool = False) -> None:
    """Raise ValueError unless it is a sized dataset of problems, or of rows with a column `prompt`.

    Args:
        scored: by an environment, which is given the column `answer`: without one there is a warning.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(
            f"{name} is a {type(dataset).__name__}, of no known length: give one with a length and rows by number,"
            " such as a datasets.Dataset that is not streamed, or a list"
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty: give it at least one prompt")
    row = dataset[0]
    if not isinstance(row, Problem) and not (isinstance(row, Mapping) and "prompt" in row):
        found = f"the columns {', '.join(map(repr, row))}" if isinstance(row, Mapping) else repr(row)
        raise ValueError(f"{name} has {found}, and no column 'prompt': rename the one that has the prompts")
    if scored and not isinstance(row, Problem) and "answer" not in row:
        columns = ", ".join(map(repr, row))
        _log.warning("%s has the columns %s, and no 'answer': the environment is given None for it", name, columns)


def problem(row: Any, tokenizer: PreTrainedTokenizerBase, column: str | None = None) -> Problem:
    """A row as a problem: its prompt as text, and as the answer that `column` of it, or all of it.

    A conversation goes through the tokenizer's chat template.

    Raises:
        ValueError: the row has no prompt, or one of another kind.
    """
    if isinstance(row, Problem):
        return row
    prompt = row.get("prompt")
    if not isinstance(prompt, str) and not _is_conversation(prompt):
        raise ValueError(
            f"a row has prompt={prompt!r}: give text, or a conversation, which is a list of messages, each with its"
            " role and content"
        )
    if not isinstance(prompt, str):
        ours = prompt[-1]["role"] == "assistant"  # a turn that the policy is to go on with
        how = {"add_generation_prompt": not ours, "continue_final_message": ours}
        text = str(tokenizer.apply_chat_template(prompt, tokenize=False, **how))
        begin = tokenizer.bos_token  # which the tokenizer adds by itself
        prompt = text.removeprefix(begin) if begin and _adds(tokenizer, begin) else text
    return Problem(prompt, Row(row) if column is None else row.get(column))


def check_prompts(dataset: Sequence[Any], tokenizer: PreTrainedTokenizerBase, limit: int | None, room: int) -> None:
    """Raise ValueError for an empty prompt, and where one and a completion of `room` tokens go beyond the policy's
    `limit` of positions.
    """
    for i in range(len(dataset)):
        prompt = problem(dataset[i], tokenizer).prompt
        if not prompt and not tokenizer(prompt)["input_ids"]:
            raise ValueError(f"the prompt of row {i} is empty: leave it out")
        if limit is not None and len(prompt.encode()) + 2 > limit - room:  # a token has a byte at least
            length = len(tokenizer(prompt)["input_ids"])
            if length + room > limit:
                raise ValueError(
                    f"the prompt of row {i} has {length} tokens, which with max_completion_length={room} go beyond the"
                    f" policy's {limit} positions: leave it out, or lower max_completion_length"
                )


def tokenizer_of(policy: PreTrainedModel, given: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that is given, or the policy's own.

    Raises:
        TypeError, ValueError: it is none, or has no token that ends a text, or none to pad with, that the policy knows.
    """
    name = policy.config._name_or_path
    if given is None and not name:
        raise ValueError("processing_class=None, and the model has no name or path to load a tokenizer from: give one")
    tokenizer = AutoTokenizer.from_pretrained(name) if given is None else given
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(
            f"processing_class is a {type(tokenizer).__name__}: give a tokenizer, as processor.tokenizer is"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no end-of-text token, which ends a completion: set"
            " tokenizer.eos_token"
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no padding token: set tokenizer.pad_token ="
            " tokenizer.eos_token, or one that it has for nothing else"
        )
    last, known = max(tokenizer.eos_token_id, tokenizer.pad_token_id), policy.config.get_text_config().vocab_size
    if last >= known:
        raise ValueError(
            f"the tokenizer's token {tokenizer.convert_ids_to_tokens(last)!r} has the number {last}, and the policy"
            f" knows {known} tokens: call model.resize_token_embeddings(len(tokenizer)), or take a token that it knows"
        )
    return tokenizer


def _is_conversation(prompt: Any) -> bool:
    return (
        isinstance(prompt, Sequence) and len(prompt) > 0 and all(isinstance(m, Mapping) and "role" in m for m in prompt)
    )


def _adds(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    return bool(tokenizer("")["input_ids"][:1] == [tokenizer.convert_tokens_to_ids(token)])
