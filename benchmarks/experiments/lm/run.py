"""Trains a small character-level language model on Python's own sources, a run a cell of the sweep. Resumable.

python -m benchmarks.experiments.lm.run
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from benchmarks.experiments.lm.sweep import ADAPTIVE, FIXED, MATCHED, RADAM, STEPS, cells
from benchmarks.rebuilding import RESULTS

RUNS = RESULTS / "lm" / "runs.jsonl"
TOKENS, BATCH = 64, 16
EVERY = 10  # of the steps whose loss and lr are kept
CELL = ("arm", "lr", "seed")


def texts() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Windows of the standard library's top-level modules, and 256 of the last tenth of these, held out."""
    modules = sorted(Path(os.__file__).parent.glob("*.py"))
    cut = len(modules) * 9 // 10
    train, held_out = (_windows("".join(map(_read, part))) for part in (modules[:cut], modules[cut:]))
    return train, held_out[:: len(held_out) // 256][:256]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _windows(text: str) -> list[dict[str, Any]]:
    ids = torch.tensor([min(ord(letter), 127) for letter in text])
    return [{"input_ids": window, "labels": window} for window in ids.split(TOKENS)[:-1]]


class Record(TrainerCallback):
    """The lr of every update, as the optimizer had it."""

    def __init__(self) -> None:
        self.lrs: list[float] = []

    def on_train_begin(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
        getattr(optimizer, "optimizer", optimizer).register_step_pre_hook(
            lambda inner, *_: self.lrs.append(float(inner.param_groups[0]["lr"]))
        )


def train(
    arm: str, lr: float, seed: int, data: tuple[list[Any], list[Any]], warmup: AdaptiveWarmupCallback | None
) -> dict[str, Any]:
    """One run: held-out loss at the end, mean lr, training losses (means of ten steps) and lrs (of every tenth)."""
    set_seed(seed)
    sizes = {"vocab_size": 128, "n_positions": TOKENS, "n_embd": 48, "n_layer": 2, "n_head": 4}
    model, record = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)), Record()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=STEPS, per_device_train_batch_size=BATCH, per_device_eval_batch_size=64, seed=seed,
            learning_rate=lr, lr_scheduler_type="cosine", warmup_steps=math.ceil(FIXED.get(arm, 0.0) * STEPS),
            logging_steps=EVERY, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        optimizer = torch.optim.RAdam(model.parameters(), lr=lr) if arm == RADAM else None
        callbacks = [record, warmup] if warmup else [record]
        trainer = Trainer(
            model,
            arguments,
            train_dataset=data[0],
            eval_dataset=data[1],
            callbacks=callbacks,
            optimizers=(optimizer, None),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        final = trainer.evaluate()["eval_loss"]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "final": round(final, 5),
        "mean_lr": float(f"{sum(record.lrs) / STEPS:.5g}"),
        "losses": [round(loss, 4) for loss in losses],
        "lrs": [float(f"{used:.4g}") for used in record.lrs[EVERY - 1 :: EVERY]],
    }


def main() -> None:
    """Run what is not yet in the results, in the sweep's order."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    words: Any = transformers_logging
    words.set_verbosity_error()
    data, mean_lrs = texts(), dict[tuple[float, int], float]()
    done = [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()] if RUNS.exists() else []
    for cell in cells():
        key = (cell["lr"], cell["seed"])
        run = next((run for run in done if all(run[name] == cell[name] for name in CELL)), None)
        if run is None:
            arm, lr, seed = (cell[name] for name in CELL)
            if arm == MATCHED:  # half the peak is the mean of a cosine, whatever its linear warmup
                run = cell | train(arm, 2.0 * mean_lrs[key], seed, data, None)
            else:
                run = cell | train(arm, lr, seed, data, AdaptiveWarmupCallback() if arm == ADAPTIVE else None)
            with RUNS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(run) + "\n")
            print(f"{cell}: {run['final']:.3f}", flush=True)
        if cell["arm"] == ADAPTIVE:
            mean_lrs[key] = run["mean_lr"]


if __name__ == "__main__":
    main()
