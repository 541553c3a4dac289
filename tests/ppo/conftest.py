"""Small real things for the PPO tests: a character tokenizer, policies, and tasks that take seconds to learn."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from adaptive_warmup.ppo import Problem, Split

PAD, EOS = "<pad>", "<eos>"
CHARACTERS = "0123456789abcqsx=#?<>"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character."""
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS)


@pytest.fixture
def make_policy(tokenizer: PreTrainedTokenizerFast) -> Callable[..., PreTrainedModel]:
    """An untrained policy of some 10,000 parameters."""

    def make(kind: str = "llama", seed: int = 0) -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if kind == "gpt2":
                sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
                return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, **sizes))
            return LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=32,
                    intermediate_size=48,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    max_position_embeddings=64,
                    pad_token_id=0,
                    eos_token_id=1,
                    initializer_range=0.2,  # so that an untrained policy is far enough from uniform to tell rows apart
                )
            )

    return make


@pytest.fixture
def scripted_policy() -> Callable[[dict[int, int], int], PreTrainedModel]:
    """A Llama with weights set by hand: after token a it writes `script[a]`, whatever came before."""

    def make(script: dict[int, int], vocabulary: int) -> PreTrainedModel:
        width = 2 * ((vocabulary + 1) // 2)
        policy = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=2,
                num_hidden_layers=1,
                num_attention_heads=1,
                max_position_embeddings=64,
            )
        )
        with torch.no_grad():
            for layer_weights in policy.model.layers[0].parameters():
                layer_weights.zero_()  # attention and MLP add nothing: what is read is the last token alone
            policy.model.embed_tokens.weight.copy_(torch.eye(vocabulary, width))
            policy.lm_head.weight.zero_()
            for before, after in script.items():
                policy.lm_head.weight[after, before] = 100.0
        return policy

    return make


class CopyTask:
    """ "7=" asks for "7"."""

    stops: tuple[str, ...] = ()
    max_turns = 0

    def sample(self, count: int, seed: int, split: Split = "train") -> list[Problem]:
        draw = random.Random(f"{seed} {split}")
        return [Problem(f"{digit}=", str(digit)) for digit in (draw.randrange(10) for _ in range(count))]

    def reply(self, problem: Problem, response: str) -> str | None:
        return None

    def score(self, problem: Problem, response: str) -> float:
        return float(response[:1] == problem.answer)


class ToolTask(CopyTask):
    """ "3=": the policy may ask with "?", is told "x4" (the digit after), and should then write it."""

    stops = ("?",)
    max_turns = 2

    def reply(self, problem: Problem, response: str) -> str | None:
        return f"x{(int(problem.answer) + 1) % 10}"

    def score(self, problem: Problem, response: str) -> float:
        return response.count("x") / 2


class LongPromptTask(ToolTask):
    """Prompts of 2 to 9 tokens, so that there is left padding."""

    def sample(self, count: int, seed: int, split: Split = "train") -> list[Problem]:
        return [Problem("a" * (i % 8) + p.prompt, p.answer) for i, p in enumerate(super().sample(count, seed, split))]


@pytest.fixture
def copy_task() -> CopyTask:
    return CopyTask()


@pytest.fixture
def tool_task() -> LongPromptTask:
    return LongPromptTask()


@pytest.fixture
def task_of() -> Callable[..., Any]:
    """A task with the given prompts and replies, for examples worked out by hand."""

    def make(stops: tuple[str, ...], replies: list[str | None], max_turns: int = 9) -> Any:
        class ByHand(CopyTask):
            def __init__(self) -> None:
                self.stops, self.max_turns = stops, max_turns
                self.asked: list[str] = []

            def reply(self, problem: Problem, response: str) -> str | None:
                self.asked.append(response)
                return replies[len(self.asked) - 1]

            def score(self, problem: Problem, response: str) -> float:
                return float(len(response))

        return ByHand()

    return make
