"""GRPO with adaptive warmup: `python examples/grpo.py`, or with `--model` a real policy.

GRPO reports no policy KL, so the callback's probe measures it on the completions of each step.
"""

from __future__ import annotations

import torch
from common import digits, parse, tell
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback

options = parse(__doc__, "grpo")
warmup = AdaptiveWarmupCallback(log=f"{options.out}/decisions.jsonl")
trainer = GRPOTrainer(
    model=options.model,
    reward_funcs=digits,
    args=GRPOConfig(
        output_dir=options.out,
        max_steps=options.steps,
        learning_rate=options.lr,
        warmup_steps=20,  # the nominal warmup
        lr_scheduler_type="constant_with_warmup",
        per_device_train_batch_size=32,
        num_generations=8,
        num_iterations=2,
        max_completion_length=12,
        bf16=torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to=options.report_to,
    ),
    train_dataset=Dataset.from_dict({"prompt": [f"Number {i}: " for i in range(100)]}),
    callbacks=[warmup],
)
trainer.train()
tell(trainer, warmup, "reward")
