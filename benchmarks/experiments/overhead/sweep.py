"""What is measured: what a step is told, beside which scheduler, how often, and at which sizes."""

from __future__ import annotations

GROUPS = 2  # param groups, of actor and critic
REPEATS = 100  # pairs of blocks, one right after the other, so that a busy machine is as busy for both
BLOCK = 200  # steps in a block: a few milliseconds

PLAIN = "LambdaLR"  # torch's, with the linear warmup as its lambda
TOLD: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "3 signals": ("kl", "task_reward", "grad_norm"),  # of the scheduler's docstring
    "9 signals": (  # all that the PPO loop reports
        "kl", "reference_kl", "task_reward", "kl_reward", "grad_norm", "loss", "clip_fraction", "entropy",
        "explained_variance",
    ),
}  # fmt: skip

TRAINER_STEPS, TRAINER_REPEATS = 100, 5
READ = {  # how the callback reads, by what is trained; "late" is the default on an accelerator, "now" on a CPU
    "Trainer": None,
    "Trainer with the callback, as on an accelerator": "late",
    "Trainer with the callback": "now",
}
IMPORTS: dict[str, tuple[str, str]] = {  # what the user has imported already, and what is imported then
    "AdaptiveWarmup": ("import torch, torch.optim.lr_scheduler", "from adaptive_warmup import AdaptiveWarmup"),
    "AdaptiveWarmupCallback": (
        "import torch; from transformers import Trainer",
        "from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback",
    ),
}
IMPORT_REPEATS = 3
STEPS_DONE = (1_000, 5_000)  # after which memory is looked at
PARAMETERS = (1, 1_000)  # tensors in each group
