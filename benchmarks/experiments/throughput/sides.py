"""One side's run, as seconds of CPU and of wall time for each RL step: `python sides.py SIDE EPOCHS`, a line of JSON.

Runs by itself, since TRL 1.12, the last with a PPOTrainer, needs an environment of its own.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
import tempfile
import time
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

EPISODES, MINI_BATCHES, PROMPT, RESPONSE, STEPS = 64, 2, 16, 32, 8
KL_COEF, LR = 0.05, 1e-5
Times = list[tuple[float, float]]
LETTERS = [chr(0x4E00 + i) for i in range(198)]


def tokenizer() -> PreTrainedTokenizerFast:
    ids = {"<pad>": 0, "<eos>": 1, **{letter: i + 2 for i, letter in enumerate(LETTERS)}}
    made = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def shape(**more: Any) -> GPT2Config:
    sizes = {"vocab_size": 200, "n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 64}
    drop = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
    return GPT2Config(**sizes, **drop, bos_token_id=0, eos_token_id=1, pad_token_id=0, **more)


def prompts() -> list[str]:
    drawn = torch.randint(0, 198, (256, PROMPT), generator=torch.Generator().manual_seed(0))
    return ["".join(LETTERS[i] for i in row) for row in drawn.tolist()]


def now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def differences(marks: Times) -> Times:
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(marks)]


class Clock(TrainerCallback):
    """Marks the end of each RL step."""

    def __init__(self, updates: int) -> None:
        self.updates, self.marks = updates, list[tuple[float, float]]()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.updates == 0:
            self.marks.append(now())


class Rule(nn.Module):
    """A rule's reward as TRL 1.12 wants it, a model; it costs next to nothing."""

    base_model_prefix = "rule"

    def rule(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(hidden_states=[torch.zeros(*input_ids.shape, 1)])

    def score(self, hidden: Tensor) -> Tensor:
        return hidden


def trl(epochs: int, folder: str) -> Times:
    """TRL 1.12's PPOTrainer with a separate value model."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    words, clock = tokenizer(), Clock(1)
    policy = GPT2LMHeadModel(shape())
    arguments = PPOConfig(
        folder, per_device_train_batch_size=EPISODES, gradient_accumulation_steps=1,
        num_mini_batches=MINI_BATCHES, num_ppo_epochs=epochs, total_episodes=EPISODES * (STEPS + 1),
        response_length=RESPONSE, kl_coef=KL_COEF, learning_rate=LR, num_sample_generations=0, save_strategy="no",
        report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, logging_steps=1000,
    )  # fmt: skip
    rows = Dataset.from_dict({"input_ids": words(prompts())["input_ids"]})
    value = GPT2ForSequenceClassification(shape(num_labels=1))
    PPOTrainer(arguments, words, policy, copy.deepcopy(policy), Rule(), rows, value, callbacks=[clock]).train()
    return differences(clock.marks)


def ours(epochs: int, folder: str, shared: bool = False) -> Times:
    """Ours, with a separate value model or with a value head on the policy's trunk; without the callback."""
    from adaptive_warmup.integrations.ppo_trainer import PPOConfig, PPOTrainer
    from adaptive_warmup.ppo import ValueHead

    updates = epochs * MINI_BATCHES
    clock, policy = Clock(updates), GPT2LMHeadModel(shape())
    arguments = PPOConfig(
        folder, max_steps=updates * (STEPS + 1), per_device_train_batch_size=EPISODES // MINI_BATCHES,
        num_mini_batches=MINI_BATCHES, num_ppo_epochs=epochs, max_completion_length=RESPONSE, kl_coef=KL_COEF,
        learning_rate=LR, save_strategy="no", report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
        logging_steps=1000,
    )  # fmt: skip
    trainer = PPOTrainer(
        policy,
        arguments,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_dict({"prompt": prompts()}),
        processing_class=tokenizer(),
        value_model=ValueHead(policy.config.hidden_size) if shared else None,
        callbacks=[clock],
    )
    trainer.train()
    return differences(clock.marks)


def bare(epochs: int, folder: str) -> Times:
    """The work itself, by hand: sampling with a static cache, reference and value forward, GAE, updates."""
    from transformers import StaticCache

    from adaptive_warmup.ppo import ValueModel, gae, kl_penalised_rewards, policy_loss, response_logprobs, value_loss
    from adaptive_warmup.ppo import whiten as whitened
    from adaptive_warmup.ppo.cache import cache_name

    policy = GPT2LMHeadModel(shape()).eval()
    name = cache_name(policy)
    reference, critic = copy.deepcopy(policy), ValueModel.copy_of(policy).eval()
    parameters = [*policy.parameters(), *critic.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LR, fused=True)
    encoded = torch.tensor(tokenizer()(prompts())["input_ids"])
    marks = [now()]
    for _ in range(STEPS):
        ids = encoded[torch.randperm(256)[:EPISODES]]
        cache = StaticCache(config=policy.config, max_cache_len=PROMPT + RESPONSE)
        inputs, chosen = ids, []
        with torch.no_grad():
            for _ in range(RESPONSE):
                out = policy(input_ids=inputs, use_cache=True, logits_to_keep=1, **{name: cache})
                chances = out.logits[:, -1].softmax(-1)
                inputs = torch.multinomial(chances, 1)
                chosen.append(chances.gather(-1, inputs).log())
                ids = torch.cat([ids, inputs], 1)
            old, attention = torch.cat(chosen, 1), torch.ones_like(ids)
            mask = torch.ones_like(old, dtype=torch.bool)
            frozen, values = response_logprobs(reference, ids, attention, RESPONSE), critic(ids, attention, RESPONSE)
            rewards = kl_penalised_rewards(torch.zeros(EPISODES), old, frozen, mask, KL_COEF)
            advantages, returns = gae(rewards, values, mask, 1.0, 0.95)
            advantages = whitened(advantages, mask)
        for _ in range(epochs):
            for rows in torch.randperm(EPISODES).chunk(MINI_BATCHES):
                logprobs = response_logprobs(policy, ids[rows], attention[rows], RESPONSE)
                now_values = critic(ids[rows], attention[rows], RESPONSE)
                loss = policy_loss(logprobs, old[rows], advantages[rows], mask[rows], 0.2)
                loss = loss + 0.1 * value_loss(now_values, values[rows], returns[rows], mask[rows], 0.2)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
        marks.append(now())
    return differences(marks)


SIDES = {"trl": trl, "ours": ours, "ours, shared": lambda epochs, folder: ours(epochs, folder, True), "bare": bare}

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as out:
        print(json.dumps(SIDES[sys.argv[1]](int(sys.argv[2]), out)))
