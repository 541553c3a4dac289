"""SFT with adaptive warmup: `python examples/sft.py`, or with `--model` a real policy.

SFT has no reward and no policy KL: the callback's probe measures the KL on a few training sequences.
"""

from __future__ import annotations

import torch
from common import parse, tell
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback

options = parse(__doc__, "sft")
warmup = AdaptiveWarmupCallback(log=f"{options.out}/decisions.jsonl")
trainer = SFTTrainer(
    model=options.model,
    args=SFTConfig(
        output_dir=options.out,
        max_steps=options.steps,
        learning_rate=options.lr,
        warmup_steps=40,  # the nominal warmup
        lr_scheduler_type="cosine",
        per_device_train_batch_size=8,
        max_length=64,
        max_grad_norm=0.0,  # the outliers are the controller's to cut
        bf16=torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to=options.report_to,
    ),
    train_dataset=Dataset.from_dict({"text": [f"{i} and {i} make {2 * i}." for i in range(1000)]}),
    callbacks=[warmup],
)
trainer.train()
tell(trainer, warmup, "loss")
