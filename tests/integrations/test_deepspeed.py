"""`AdaptiveWarmupCallback` where DeepSpeed, if it is installed, makes the update within the Trainer's backward.

Not in the development environment: `pip install -c constraints.txt deepspeed`, and run this file. One process: of two
on CPUs the Trainer (transformers 5.23) counts one, and DeepSpeed refuses the batch size that follows from that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.trainers import STEPS
from tests.processes import run_processes

pytest.importorskip("deepspeed")

_PROCESS = """
import json, os, sys
from pathlib import Path
os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
import torch
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from tests.integrations.test_probing import gpt, kls, texts
from tests.integrations.trainers import Record, trainer, weights

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled first; gloo does as well
out, stage, configured = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "config"

class OfTheUpdates(Record):
    def on_train_begin(self, *args, optimizer, **kwargs):
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        super().on_train_begin(*args, optimizer=optimizer, **kwargs)

def trained(resume=None):
    auto = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")
    deep = {"zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True, **dict.fromkeys(auto, "auto")}
    if configured:
        params = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
        deep["optimizer"] = {"type": "AdamW", "params": {**params, "torch_adam": True}}
    warmup = AdaptiveWarmupCallback(4, target_kl=0.003)
    record = OfTheUpdates(warmup)
    settings = {"save_strategy": "steps", "save_steps": 6, "gradient_accumulation_steps": 2, "learning_rate": 0.03}
    settings |= {"lr_scheduler_type": "linear", "use_cpu": False}  # or Accelerate leaves DeepSpeed out
    run = trainer(out, [record, warmup], model=gpt(), data=texts(96), deepspeed=deep, **settings)
    run.train(resume_from_checkpoint=resume)
    lrs = record.lrs[:: len(record.lrs) // len(record.logged("loss"))]  # ZeRO steps once for each param group
    return {
        "lrs": lrs,
        "logged": record.logged("learning_rate"),
        "factors": record.logged("adaptive_warmup/factor"),
        "kls": kls(record),
        "weights": [tensor.tolist() for tensor in weights(run)],
    }

told = {"whole": trained(), "resumed": trained(str(out / "checkpoint-6"))}
(out / "told.json").write_text(json.dumps(told))
"""


@pytest.mark.parametrize(("stage", "optimizer"), [(1, "config"), (2, "client")])
def test_it_drives_the_lr_measures_and_resumes(tmp_path: Path, stage: int, optimizer: str) -> None:
    run_processes(_PROCESS, tmp_path, tmp_path, stage, optimizer, count=1)
    told: dict[str, dict[str, Any]] = json.loads((tmp_path / "told.json").read_text())
    whole, resumed = told["whole"], told["resumed"]
    scheduled = [0.03 * (1 - step / STEPS) for step in range(STEPS)]
    expected = [lr * factor for lr, factor in zip(scheduled, whole["factors"], strict=True)]
    assert whole["lrs"] == pytest.approx(expected, rel=1e-6)
    assert whole["logged"] == pytest.approx(whole["lrs"], rel=1e-6)
    assert len(set(whole["factors"])) > 2
    assert [step for step, kl in enumerate(whole["kls"]) if kl] == [0, 5, 10]  # of updates: 0 it would be after them
    for what in ("lrs", "logged", "factors", "kls"):
        assert resumed[what] == whole[what][6:]
    assert resumed["weights"] == whole["weights"]
