"""Measures what we add to a training step, in CPU time of one thread, and writes one line a measurement."""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PrinterCallback, Trainer, TrainingArguments

from adaptive_warmup import AdaptiveWarmup
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from benchmarks.experiments.overhead.sweep import (
    BLOCK,
    GROUPS,
    IMPORT_REPEATS,
    IMPORTS,
    PARAMETERS,
    PLAIN,
    READ,
    REPEATS,
    STEPS_DONE,
    TOLD,
    TRAINER_REPEATS,
    TRAINER_STEPS,
)
from benchmarks.rebuilding import RESULTS

RUNS = RESULTS / "overhead" / "runs.jsonl"
WARMUP = 100
Row = dict[str, Any]


class Reads(TorchDispatchMode):
    """Counts how often Python was given a tensor's value: each time it would have waited for the tensor's device.

    Of `lrs`, if given, since a scratch tensor that is made on the CPU waits for none.
    """

    def __init__(self, *lrs: Tensor) -> None:
        super().__init__()
        self.count, self._places = 0, {lr.data_ptr() for lr in lrs}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += not self._places or args[0].data_ptr() in self._places
        return func(*args, **(kwargs or {}))


def optimizer_of(parameters: int = 1, tensor_lr: bool = False) -> SGD:
    groups = [{"params": [Parameter(torch.ones(1)) for _ in range(parameters)]} for _ in range(GROUPS)]
    return SGD([{**group, "lr": torch.tensor(1e-3) if tensor_lr else 1e-3} for group in groups])


def healthy(names: Iterable[str], steps: int) -> list[dict[str, float]]:
    """A run that rings no alarm but in a few steps of its first block: its KL does not answer the lr, and so that comes
    to its floor. A step at a ceiling, where most steps of a run are, was seen to cost 3 % more.
    """
    draw = random.Random(0)
    centre = {"kl": 0.01, "kl_reward": -0.1, "grad_norm": 1.0}
    stream = [{name: centre.get(name, 0.1) * math.exp(draw.gauss(0.0, 0.2)) for name in names} for _ in range(steps)]
    for step, signals in enumerate(stream):
        if "task_reward" in signals:
            signals["task_reward"] = 0.5 + 0.01 * (-1) ** step
    return stream


def adaptive(parameters: int = 1, tensor_lr: bool = False) -> AdaptiveWarmup:
    scheduler = AdaptiveWarmup(optimizer_of(parameters, tensor_lr), WARMUP, target_kl=0.01)
    scheduler.optimizer.step()
    return scheduler


def plain() -> LRScheduler:
    scheduler = LambdaLR(optimizer_of(), lambda step: min(1.0, (step + 1) / WARMUP))
    scheduler.optimizer.step()
    return scheduler


def advance(scheduler: AdaptiveWarmup, stream: list[dict[str, float]]) -> None:
    for signals in stream:
        scheduler.observe(**signals)
        scheduler.step()


def microseconds(block: Callable[[], object], steps: int) -> float:
    began = time.thread_time_ns()
    block()
    return round((time.thread_time_ns() - began) / steps / 1e3, 3)


def steps() -> Iterator[Row]:
    """Each repeat times every scheduler, one right after the other."""
    other, ours = plain(), {told: adaptive() for told in TOLD}
    streams = {told: healthy(names, BLOCK) for told, names in TOLD.items()}

    def beside() -> None:
        for _ in range(BLOCK):
            other.step()

    for repeat in range(REPEATS):
        row: Row = {"what": "step", "repeat": repeat, PLAIN: microseconds(beside, BLOCK)}
        for told, scheduler in ours.items():
            row[told] = microseconds(lambda: advance(scheduler, streams[told]), BLOCK)  # noqa: B023  # called at once
        yield row


def train(callbacks: list[Any]) -> None:
    model = torch.nn.Linear(4, 1)
    model.forward = lambda x: {"loss": torch.nn.Linear.forward(model, x).square().mean()}  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True}
        once = {
            "max_steps": TRAINER_STEPS,
            "logging_steps": TRAINER_STEPS,
            "warmup_steps": 10,
            "per_device_train_batch_size": 2,
        }
        arguments = TrainingArguments(folder, **once, **quiet, remove_unused_columns=False, dataloader_pin_memory=False)
        trainer = Trainer(model, arguments, train_dataset=[{"x": torch.ones(4)}] * 64, callbacks=callbacks)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def trainers() -> Iterator[Row]:
    train([])  # the first one pays for what is made once
    for repeat in range(TRAINER_REPEATS):
        without = microseconds(lambda: train([]), TRAINER_STEPS)
        with_it = microseconds(lambda: train([AdaptiveWarmupCallback(probe=None)]), TRAINER_STEPS)
        yield {"what": "trainer", "repeat": repeat, "without": without, "with": with_it}


def reads() -> Iterator[Row]:
    for name, tensor_lr in (("float lrs", False), ("tensor lrs", True)):
        scheduler, stream = adaptive(tensor_lr=tensor_lr), healthy(TOLD["9 signals"], BLOCK)
        with Reads(*[g["lr"] for g in scheduler.optimizer.param_groups if tensor_lr]) as seen:
            advance(scheduler, stream)
        yield {"what": "reads", "by": name, "steps": BLOCK, "reads": seen.count}
    for name, read in READ.items():
        with Reads() as seen:
            train([AdaptiveWarmupCallback(probe=None, read=read)] if read else [])  # type: ignore[arg-type]
        yield {"what": "reads", "by": name, "steps": TRAINER_STEPS, "reads": seen.count}


def imports() -> Iterator[Row]:
    """With bytecode written, as an installed package has it; the first import writes it, and is not counted."""
    for name, (before, then) in IMPORTS.items():
        clock = f"{before}; import time; t = time.process_time(); {then}; print(time.process_time() - t)"
        with tempfile.TemporaryDirectory() as folder:
            apart = os.environ | {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
            for repeat in range(-1, IMPORT_REPEATS):
                command = [sys.executable, "-c", clock]
                told = subprocess.run(command, check=True, capture_output=True, text=True, env=apart).stdout
                if repeat >= 0:
                    yield {
                        "what": "import",
                        "of": name,
                        "repeat": repeat,
                        "ms": round(1e3 * float(told.split()[-1]), 2),
                    }


def memory() -> Iterator[Row]:
    """Bytes that Python holds for a scheduler, as `tracemalloc` counts them, after so many steps."""
    for parameters in PARAMETERS:
        stream, optimizer, done = healthy(TOLD["9 signals"], BLOCK), optimizer_of(parameters), 0
        advance(adaptive(), stream)  # what is made once and kept, whatever the scheduler, is not counted
        tracemalloc.start()
        scheduler = AdaptiveWarmup(optimizer, WARMUP, target_kl=0.01)
        optimizer.step()
        for steps_done in STEPS_DONE:
            while done < steps_done:
                advance(scheduler, stream)
                done += BLOCK
            held = tracemalloc.get_traced_memory()[0]
            yield {"what": "memory", "parameters": parameters, "steps": done, "bytes": held}
        tracemalloc.stop()


MEASURES = {"step": steps, "trainer": trainers, "reads": reads, "import": imports, "memory": memory}


def main() -> None:
    """What is named is measured anew, the rest is kept; everything where nothing is named."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=main.__doc__)
    parser.add_argument("named", nargs="*", choices=[*MEASURES, []], metavar="NAME", help=", ".join(MEASURES))
    named = parser.parse_args().named or list(MEASURES)
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()] if RUNS.exists() else []
    for what in named:
        rows = [row for row in rows if row["what"] != what] + list(MEASURES[what]())
        RUNS.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(what, flush=True)


if __name__ == "__main__":
    main()
