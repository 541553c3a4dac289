"""PPO of a LoRA adapter with adaptive warmup: `python examples/ppo_lora.py`, or with `--model` a real policy.

The reference is the policy with its adapter switched off, and the critic a head on the policy's trunk: there is one
model in memory.
"""

from __future__ import annotations

import torch
from common import digits, parse, tell
from datasets import Dataset
from peft import LoraConfig

from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from adaptive_warmup.integrations.ppo_trainer import PPOConfig, PPOTrainer

options = parse(__doc__, "ppo_lora")
warmup = AdaptiveWarmupCallback(log=f"{options.out}/decisions.jsonl")
trainer = PPOTrainer(
    model=options.model,
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    reward_funcs=digits,
    args=PPOConfig(
        output_dir=options.out,
        max_steps=options.steps,
        learning_rate=options.lr,
        value_learning_rate=options.lr / 2,
        warmup_steps=20,  # the nominal warmup
        lr_scheduler_type="constant_with_warmup",
        per_device_train_batch_size=64,
        max_completion_length=12,
        kl_coef=0.01,
        bf16=torch.cuda.is_available(),
        logging_steps=2,
        save_strategy="no",
        report_to=options.report_to,
    ),
    train_dataset=Dataset.from_dict({"prompt": [f"Number {i}: " for i in range(100)]}),
    callbacks=[warmup],
)
trainer.train()
tell(trainer, warmup, "objective/scores")
