"""TRL's trainers and PPOTrainer on a tiny policy that learns to count: with fixed warmups, and with the callback.

Resumable.

python -m benchmarks.experiments.trl.run
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import cache
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from adaptive_warmup.integrations.ppo_trainer import PPOConfig, PPOTrainer
from benchmarks.experiments.trl.sweep import ADAPTIVE, ARMS, FIXED, NOMINAL, RUINOUS, STEPS, cells
from benchmarks.rebuilding import RESULTS

RUNS = RESULTS / "trl" / "runs.jsonl"
BATCH, GENERATIONS, LENGTH = 32, 8, 8
TAUGHT, MISTAKES = 300, 0.5
# Of each trainer: its class, its settings' class, what it is set to beside what all are, and its name of the reward.
TRAINERS: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "GRPO": (GRPOTrainer, GRPOConfig, {"num_generations": GENERATIONS}, "reward"),
    "RLOO": (RLOOTrainer, RLOOConfig, {"num_generations": GENERATIONS}, "reward"),
    "PPO": (PPOTrainer, PPOConfig, {"value_learning_rate": 3e-3}, "objective/scores"),
}
LETTERS = "0123456789ab"  # the last two are never right


def tokenizer() -> PreTrainedTokenizerFast:
    """Every letter a token, padding, and an end of text."""
    ids = {"<pad>": 0, "<eos>": 1} | {letter: i + 2 for i, letter in enumerate(LETTERS)}
    made = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\S|\s"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def counting(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """The share of digits that follow the one before, from the prompt's last on; 9 is followed by 0."""
    return [_share(prompt[-1], "".join(text.split())) for prompt, text in zip(prompts, completions, strict=True)]


def _share(last: str, text: str) -> float:
    right = 0
    for letter in text[:LENGTH]:
        right += letter.isdigit() and last.isdigit() and int(letter) == (int(last) + 1) % 10
        last = letter
    return right / LENGTH


@cache
def reference() -> GPT2LMHeadModel:
    """Where every run starts: trained on counting in which half of the steps are wrong."""
    torch.manual_seed(0)
    shape = {"vocab_size": len(tokenizer()), "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    policy = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=1, eos_token_id=1, pad_token_id=0))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(TAUGHT):
        letters = [torch.randint(10, (64,))]
        for _ in range(LENGTH):
            wrong = torch.rand(64) < MISTAKES
            letters.append(torch.where(wrong, torch.randint(len(LETTERS), (64,)), (letters[-1] + 1) % 10))
        ids = torch.stack(letters, 1) + 2
        optimizer.zero_grad()
        policy(ids, labels=ids).loss.backward()
        optimizer.step()
    return policy


def train(kind: str, arm: str, lr: float, seed: int) -> list[float]:
    """The mean reward of every step."""
    set_seed(seed)
    words = tokenizer()
    trainer_class, config_class, settings, logged = TRAINERS[kind]
    adaptive = arm == ADAPTIVE
    with tempfile.TemporaryDirectory() as folder:
        arguments = config_class(
            folder, max_steps=STEPS, learning_rate=lr, lr_scheduler_type="constant_with_warmup",
            warmup_steps=round((NOMINAL if adaptive else FIXED[arm]) * STEPS), per_device_train_batch_size=BATCH,
            max_completion_length=LENGTH, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False,
            disable_tqdm=True, seed=seed, **settings,
        )  # fmt: skip
        reference().save_pretrained(f"{folder}/policy")  # a path, since RLOO loads its reference by it
        trainer = trainer_class(
            model=f"{folder}/policy",
            processing_class=words,
            reward_funcs=counting,
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": [str(i % 10) for i in range(100)]}),
            callbacks=[AdaptiveWarmupCallback()] if adaptive else [],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            print(f"{kind}, {arm}, seed {seed}: the policy predicts no number any more, and earns nothing from here on")
    rewards = [entry[logged] for entry in trainer.state.log_history if logged in entry]
    return rewards + [0.0] * (STEPS - len(rewards))


def main() -> None:
    """Run what is not yet in the results, in the sweep's order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", nargs="+", default=tuple(RUINOUS), choices=tuple(RUINOUS))
    parser.add_argument("--try", dest="tried", nargs=3, metavar=("ARM", "LR", "SEED"), help="one run, kept nowhere")
    options = parser.parse_args()
    torch.set_num_threads(1)
    words: Any = transformers_logging
    words.set_verbosity_error()
    if options.tried:
        arm, lr, seed = options.tried
        if arm not in ARMS:
            parser.error(f"--try {arm!r}: give one of {', '.join(map(repr, ARMS))}")
        for kind in options.trainers:
            rewards = train(kind, arm, float(lr), int(seed))
            print(f"{kind} {arm} {lr}: area {sum(rewards) / STEPS:.3f}, end {sum(rewards[-10:]) / 10:.3f}", flush=True)
        return
    done = [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()] if RUNS.exists() else []
    known = [{name: run[name] for name in ("trainer", "arm", "lr", "seed")} for run in done]
    todo = [cell for cell in cells() if cell not in known and cell["trainer"] in options.trainers]
    RUNS.parent.mkdir(parents=True, exist_ok=True)
    for cell in tqdm(todo, unit="run"):
        rewards = train(cell["trainer"], cell["arm"], cell["lr"], cell["seed"])
        with RUNS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(cell | {"rewards": [round(reward, 4) for reward in rewards]}) + "\n")


if __name__ == "__main__":
    main()
