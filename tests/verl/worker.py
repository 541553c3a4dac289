"""One of two workers of verl, without Ray: what lr moves its weights, with our factor, without, and after a resume."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import on_cpu  # noqa: F401  # the platform
import torch
from runs import PEAK, RAMP
from tensordict import NonTensorData, TensorDict
from torch import Tensor
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker

from adaptive_warmup.integrations.verl.carried import FACTOR, SCHEDULED

UPDATES = 2  # mini-batches


def made(model: Path) -> TrainingWorker:
    """A `TrainingWorker` whose optimizer moves each weight by the lr (Adam that remembers nothing)."""
    config = TrainingWorkerConfig(
        model_type="language_model",
        model_config=HFModelConfig(
            path=str(model), use_remove_padding=False, enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "eager"},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2", use_torch_compile=False, micro_batch_size_per_gpu=2, use_dynamic_bsz=False,
            mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        ),
        optimizer_config=FSDPOptimizerConfig(
            lr=PEAK, betas=(0.0, 0.0), weight_decay=0.0, lr_warmup_steps=RAMP, total_training_steps=10
        ),
        checkpoint_config=CheckpointConfig(),
    )  # fmt: skip
    worker = TrainingWorker(config)
    worker.reset()
    worker.set_loss_fn(loss)
    return worker


def loss(model_output: Any, data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
    """To predict the tokens that are there."""
    return -model_output["log_probs"].values().mean(), {}


def batch(rank: int, factor: float | None) -> TensorDict:
    """Other tokens for each rank, the same ones each time."""
    tokens = torch.randint(3, 64, (2 * UPDATES, 12), generator=torch.Generator().manual_seed(rank))
    rows = {
        "input_ids": torch.nested.as_nested_tensor(list(tokens), layout=torch.jagged),
        "position_ids": torch.nested.as_nested_tensor([torch.arange(12)] * len(tokens), layout=torch.jagged),
        "loss_mask": torch.ones(len(tokens), 12),
    }
    data = TensorDict(rows, batch_size=len(tokens))
    said = {"mini_batch_size": 4, "epochs": 1, "seed": 1, "temperature": 1.0, "calculate_entropy": False}
    tensordict_utils.assign_non_tensor(data, **said, dataloader_kwargs=NonTensorData({"shuffle": False}))
    if factor is not None:
        tensordict_utils.assign_non_tensor(data, **{FACTOR: factor})
    return data


def step(worker: TrainingWorker, factor: float | None) -> dict[str, float | None]:
    """One RL step; the lr that its updates must have had for the weights of this rank to have moved so far."""
    before = [parameter.to_local().clone() for parameter in worker.engine.module.parameters()]
    metrics = tensordict_utils.get(worker.train_mini_batch(batch(worker.rank, factor)), "metrics")
    after = [parameter.to_local() for parameter in worker.engine.module.parameters()]
    moved = max(float((new - old).abs().max()) for new, old in zip(after, before, strict=True) if new.numel())
    scheduled = metrics.get(SCHEDULED)
    assert scheduled is None or len(set(scheduled)) == 1, "the ranks disagree"
    held = worker.engine.optimizer.param_groups[0]["lr"]
    return {"used": moved / UPDATES, "scheduled": scheduled and scheduled[0], "next": metrics["lr"][-1], "held": held}


def main(model: Path, out: Path) -> None:
    worker = made(model)
    said = {"plain": [step(worker, None) for _ in range(3)]}
    worker.save_checkpoint(str(out / "state"))
    factors = [0.25, 0.5, 1.0, 0.125]
    said["warmed"] = [step(worker, factor) for factor in factors]
    worker.load_checkpoint(str(out / "state"))
    said["resumed"] = [step(worker, factor) for factor in factors]
    (out / f"rank{worker.rank}.json").write_text(json.dumps(said))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
