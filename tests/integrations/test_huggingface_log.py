"""The decision log of a real `transformers.Trainer`: through a resumption, and of several processes once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.optim import SGD

from adaptive_warmup.history import DecisionLog, read, replay
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from tests.integrations.trainers import PEAK, STEPS, WARMUP, Line, Plant, Record, rows, trainer
from tests.processes import run_processes


def trained(folder: Path, log: Any, resume: str | None = None, **settings: Any) -> Record:
    warmup = AdaptiveWarmupCallback(WARMUP, log=log)
    record = Record(warmup)
    plant = Plant(record, warmup, bears=0.7 * PEAK, wiggle=0.5)
    trainer(folder, [record, plant, warmup], **settings).train(resume_from_checkpoint=resume)
    return record


def test_each_update_is_logged_with_its_lr_and_replays(tmp_path: Path) -> None:
    record = trained(tmp_path, tmp_path / "run.jsonl")
    run = read(tmp_path / "run.jsonl")
    assert [step["step"] for step in run.steps] == list(range(STEPS))
    assert [step["lr"] for step in run.steps] == pytest.approx(record.lrs, rel=1e-6)
    assert all({"loss", "grad_norm", "kl"} <= step["signals"].keys() for step in run.steps)
    assert [decision.factor for decision in replay(run)] == [step["next"] for step in run.steps]
    assert (run.about, run.config.warmup_steps, run.problem) == ({"lr": PEAK}, WARMUP, None)


def test_the_lr_of_a_cut_update_and_of_groups_of_which_the_first_is_frozen(tmp_path: Path) -> None:
    warmup = AdaptiveWarmupCallback(WARMUP, log=tmp_path / "cut.jsonl", probe=None)
    record = Record(warmup)
    settings = {"data": rows(200, outlier=100), "per_device_train_batch_size": 2, "max_steps": 100}
    trainer(tmp_path, [record, warmup], lr_scheduler_type="constant", **settings).train()
    assert min(record.lrs[10:]) < 0.01 * PEAK
    assert [step["lr"] for step in read(tmp_path / "cut.jsonl").steps] == pytest.approx(record.lrs, rel=1e-6)
    model = Line()
    optimizer = SGD([{"params": [model.bias], "lr": 0.0}, {"params": [model.weight], "lr": PEAK}])
    warmup = AdaptiveWarmupCallback(WARMUP, log=tmp_path / "frozen.jsonl", probe=None)
    record = Record(warmup)
    settings = {"model": model, "optimizers": (optimizer, None), "lr_scheduler_type": "constant"}
    trainer(tmp_path, [record, warmup], **settings).train()
    run = read(tmp_path / "frozen.jsonl")
    assert [step["lr"] for step in run.steps] == pytest.approx([lrs[1] for lrs in record.groups], rel=1e-6)
    assert run.about == {"lr": PEAK}


def test_a_run_that_resumes_from_a_checkpoint_goes_on_in_its_log(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 5}
    trained(tmp_path, tmp_path / "whole.jsonl", **saving)
    for resume in (None, str(tmp_path / "checkpoint-5")):
        trained(tmp_path, DecisionLog(tmp_path / "run.jsonl", lr=PEAK), resume, **saving)
    run = read(tmp_path / "run.jsonl")
    assert run.steps == read(tmp_path / "whole.jsonl").steps
    assert f"the run goes on at step 5: steps 5 to {STEPS - 1} before it are superseded" in str(run.problem)
    assert [decision.factor for decision in replay(run)] == [step["next"] for step in run.steps]


def test_the_log_of_another_run_is_refused_before_training(tmp_path: Path) -> None:
    trained(tmp_path, tmp_path / "run.jsonl")
    with pytest.raises(ValueError, match=r"the log of another run \(lr 0\.01, here 0\.1\): name another file"):
        trained(tmp_path, tmp_path / "run.jsonl", learning_rate=0.1)


_PROCESS = """
import sys
from pathlib import Path
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from tests.integrations.trainers import FLAT, trainer

out = Path(sys.argv[1])
trainer(out, [AdaptiveWarmupCallback(8, log=out / "run.jsonl")], ddp_backend="gloo", **FLAT).train()
"""


def test_of_several_processes_the_first_one_writes(tmp_path: Path) -> None:
    run_processes(_PROCESS, tmp_path, tmp_path)
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 1 + STEPS
    assert [step["step"] for step in read(tmp_path / "run.jsonl").steps] == list(range(STEPS))
