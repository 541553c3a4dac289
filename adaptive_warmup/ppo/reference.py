"""The policy that PPO starts from: a small transformer that can do the task but has picked up bad habits.

Made once by a short supervised run, first on perfect demonstrations and then on imperfect ones, and kept in the user's
cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, Lfm2Config, Lfm2ForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from adaptive_warmup.ppo.tasks.task import Demonstration, Task
from adaptive_warmup.ppo.tasks.tokenizer import train_tokenizer

RECIPE = 1
"""Counts the changes to the training below, so that policies made by an older one are not found in the cache."""
IGNORED = -100
PERFECT_SHARE = 0.6
"""Of the training. Mistakes from the start would hide from it that names are to be copied."""


@dataclass(frozen=True, slots=True)
class Size:
    """Shape of a policy and length of its training; see `SIZES`. A block is a convolution and an attention layer."""

    vocabulary: int
    hidden_size: int
    intermediate_size: int
    blocks: int
    heads: int
    steps: int
    batch_size: int
    learning_rate: float
    positions: int = 512


SIZES = {
    "small": Size(768, 96, 128, blocks=2, heads=4, steps=900, batch_size=32, learning_rate=3e-3),
    "tiny": Size(512, 32, 64, blocks=1, heads=2, steps=200, batch_size=16, learning_rate=1e-2),
}


def reference(
    task: Task, size: str = "small", seed: int = 0, cache: str | Path | None = None, progress: bool = True
) -> tuple[PreTrainedModel, Tokenizer]:
    """The reference policy of a task and its tokenizer, in fp32 on CPU.

    Args:
        task: what to demonstrate.
        size: "small" for real runs, minutes to make; "tiny" for tests, seconds.
        seed: of the initial weights and of the demonstrations.
        cache: folder to keep policies in. Default: the environment variable ADAPTIVE_WARMUP_CACHE, else
            `adaptive-warmup` in XDG_CACHE_HOME or ~/.cache.
        progress: show a bar while training.

    Raises:
        ValueError: where there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"there is no reference policy of size {size!r}: give one of {', '.join(SIZES)}")
    folder = _cache_folder(cache) / _key(task, size, seed)
    found = _load(folder)
    if found is None:
        found = _make(task, SIZES[size], seed, progress)
        _store(found, folder)
    return found


def _cache_folder(cache: str | Path | None) -> Path:
    given = cache or os.environ.get("ADAPTIVE_WARMUP_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaptive-warmup"


def _key(task: Task, size: str, seed: int) -> str:
    """Names all that the weights depend on; the texts of the task stand for its code and its data."""
    texts = [*task.corpus_texts(), *(demo.prompt + demo.response for demo in task.demonstrations(64, seed))]
    made_of = {
        "recipe": RECIPE,
        "task": task.name,
        "texts": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "size": asdict(SIZES[size]),
        "seed": seed,
        "versions": {package: version(package) for package in ("torch", "transformers", "tokenizers")},
    }
    return f"{size}-{hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]}"


def _load(folder: Path) -> tuple[PreTrainedModel, Tokenizer] | None:
    if not folder.is_dir():
        return None
    try:
        policy = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        return cast(PreTrainedModel, policy), cast(Tokenizer, AutoTokenizer.from_pretrained(folder))
    except Exception:  # whatever is wrong with what lies there, the remedy is to make it anew
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _store(made: tuple[PreTrainedModel, Tokenizer], folder: Path) -> None:
    """Saves to a folder aside, then renames it, so that nobody ever finds half of a policy."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        for part in made:
            part.save_pretrained(aside)
        aside.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same policy
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _make(task: Task, size: Size, seed: int, progress: bool) -> tuple[PreTrainedModel, Tokenizer]:
    tokenizer = train_tokenizer(task.corpus_texts(), task.tags, size.vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs, too
        policy = Lfm2ForCausalLM(_config(size, tokenizer))
    batches = _batches(task, tokenizer, size, seed)
    _train(policy, tqdm(batches, "reference policy", total=size.steps, disable=not progress, unit="step"), size)
    policy.train(False)
    return policy, tokenizer


def _config(size: Size, tokenizer: Tokenizer) -> Lfm2Config:
    """Blocks of a short convolution and an attention (LFM2, Liquid AI 2025), with tied embeddings.

    The task is mostly to copy names never seen before. A convolution shows each token the one before it, so that to
    find what followed it last time takes one attention. Copying was learnt in fewer steps than a two-layer Llama took.
    The initial weights are larger than is usual for large models.
    """
    return Lfm2Config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=2 * size.blocks,
        layer_types=["conv", "full_attention"] * size.blocks,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=size.positions,
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _train(policy: Lfm2ForCausalLM, batches: tqdm[tuple[Tensor, Tensor]], size: Size) -> None:
    """Cross-entropy on the policy's own tokens, under a short warmup and a cosine decay."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=size.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = OneCycleLR(optimizer, size.learning_rate, size.steps, pct_start=0.05, cycle_momentum=False)
    for token_ids_BS, labels_BS in batches:
        hidden_BSD = policy.base_model(token_ids_BS, use_cache=False).last_hidden_state  # nothing looks at the padding
        learnt = labels_BS[:, 1:] != IGNORED
        logits_NV = policy.lm_head(hidden_BSD[:, :-1][learnt])
        loss = cross_entropy(logits_NV, labels_BS[:, 1:][learnt])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        batches.set_postfix(loss=f"{loss.item():.3f}", refresh=False)  # the bar has its own pace


def _batches(task: Task, tokenizer: Tokenizer, size: Size, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and labels, (B, S) each, of fresh demonstrations."""
    rng = random.Random(seed)
    for step in range(size.steps):
        perfect = step < PERFECT_SHARE * size.steps
        # Batches of like lengths would pad less, but their gradients are so one-sided that copying is learnt far later.
        demonstrations = task.demonstrations(size.batch_size, rng.getrandbits(32), perfect)
        token_ids, labels = zip(*(_encode(demo, tokenizer) for demo in demonstrations), strict=True)
        yield _stack(token_ids, cast(int, tokenizer.pad_token_id)), _stack(labels, IGNORED)


def _encode(demonstration: Demonstration, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Token ids and labels. Each segment is encoded by itself, as in a rollout, and the last ends with EOS."""
    prompt, *segments = tokenizer([demonstration.prompt, *(s.text for s in demonstration.segments)])["input_ids"]
    token_ids, labels = list(prompt), [IGNORED] * len(prompt)
    for segment, ids in zip(demonstration.segments, segments, strict=True):
        token_ids += ids
        labels += ids if segment.own else [IGNORED] * len(ids)
    eos = cast(int, tokenizer.eos_token_id)
    return [*token_ids, eos], [*labels, eos]


def _stack(rows: tuple[list[int], ...], padding: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)
