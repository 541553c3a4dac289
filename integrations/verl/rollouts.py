"""What the driver reads of a step's rollout, which verl keeps in its TransferQueue."""

from __future__ import annotations

from typing import Any

import torch
import transfer_queue
from verl.workers.utils.padding import response_from_nested


def reward_metrics(batch: Any, *, kl_in_reward: bool) -> dict[str, float]:
    """verl's own `critic/score/mean` and `critic/rewards/mean`: verl computes them after it has saved its checkpoint,
    and by then the decision, which the checkpoint is to hold, has been taken.
    """
    names = {"critic/score/mean": "rm_scores"}
    if kl_in_reward:
        names["critic/rewards/mean"] = "token_level_rewards"
    rows = _read(batch, _real(batch), *names.values())
    sums = {name: [row.sum() for row in rows[key].unbind() if len(row)] for name, key in names.items()}
    return {name: float(torch.stack(values).mean()) for name, values in sums.items() if values}


def policy_kl(actor: Any, batch: Any, sequences: int, rollout: Any) -> float | None:
    """k3 of KL(before the step || now), nats per response token, on up to `sequences` of the step's rollout.

    One pass of the actor's workers without gradients. `old_log_probs` must be theirs; `rollout` is verl's config of it.
    """
    real, workers = _real(batch), _workers(actor)
    share, micro = _share(min(sequences, len(real)), workers, rollout.get("log_prob_micro_batch_size_per_gpu"))
    if not share:
        return None
    keys = _even(real, share * workers)
    part = batch.select_keys(keys)
    part.extra_info |= {"calculate_entropy": False, "compute_loss": False, "temperature": rollout.temperature}
    part.extra_info |= {"micro_batch_size_per_gpu": micro}
    actor.compute_log_prob(part)
    rows = _read(part, keys, "log_probs", "old_log_probs", "response_mask")
    now = response_from_nested(rows["log_probs"], rows["response_mask"]).values()
    mask = rows["response_mask"].values().bool()
    log_ratio = (now - rows["old_log_probs"].values())[mask].double()
    return float((log_ratio.exp() - 1.0 - log_ratio).mean()) if len(log_ratio) else None


def _read(batch: Any, keys: list[str], *names: str) -> Any:
    return transfer_queue.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=list(names))


def _real(batch: Any) -> list[str]:
    """All but what verl adds to fill up the workers' shares."""
    return [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]


def _workers(actor: Any) -> int:
    """Among how many workers verl splits a batch; it has by now split one."""
    return int(max(actor._dispatch_info["actor"])) + 1


def _share(count: int, workers: int, micro: int | None) -> tuple[int, int]:
    """How many of `count` sequences each worker gets, and in micro-batches of how many: verl wants whole ones."""
    share = count // workers
    micro = min(micro or share, share)
    return share - share % max(micro, 1), micro


def _even(keys: list[str], count: int) -> list[str]:
    """`count` of the keys, from all over the batch."""
    return [keys[index * len(keys) // count] for index in range(count)]
