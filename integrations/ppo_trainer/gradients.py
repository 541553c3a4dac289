"""The optimizer of a `PPOTrainer`: policy and critic each with an lr, and clipped each by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from accelerate.utils.deepspeed import DummyOptim
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from transformers.training_args import ParallelMode

from adaptive_warmup.integrations.driving import OWN_WARMUP
from adaptive_warmup.integrations.ppo_trainer.checkpoints import Checkpoints
from adaptive_warmup.integrations.ppo_trainer.model import PolicyAndValue
from adaptive_warmup.integrations.reading import gathered


class TwoParts(Checkpoints):
    """A Trainer whose model has a policy and a critic, in one optimizer."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's, with the critic's parameters in groups of their own, the last ones, at their own lr."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        whole = cast(PolicyAndValue, self.model if model is None else model)
        if made:
            for group in self._of_the_critic(whole, optimizer.param_groups):
                optimizer.add_param_group(group)
        elif isinstance(optimizer, DummyOptim):  # DeepSpeed makes one, by its config, of these
            groups = [{"params": optimizer.params}]
            optimizer.params = groups + self._of_the_critic(whole, groups)
        return optimizer

    def _of_the_critic(self, model: PolicyAndValue, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Groups like these, of the critic's parameters, which leave them."""
        critic = {id(parameter) for parameter in model.critic.parameters()}
        found = []
        for group in groups:
            theirs = [p for p in group["params"] if id(p) in critic]
            group["params"] = [p for p in group["params"] if id(p) not in critic]
            found.append({**group, "params": theirs, "lr": self.args.value_learning_rate})
            if self.args.value_warmup_steps is not None:
                found[-1][OWN_WARMUP] = True
        return found

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's, with the critic's own warmup in place of the policy's, where there is one."""
        made = self.lr_scheduler is None
        schedule = super().create_scheduler(num_training_steps, optimizer)
        if made and self.args.value_warmup_steps is not None:
            _warm_up_apart(schedule, self.args.value_warmup_steps)
        return schedule

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        return self._clip(self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None and not self.is_deepspeed_enabled:
            return self._clip(math.inf)
        return super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]

    def _clip(self, limit: float) -> Tensor:
        """The norm of the policy's gradient; where one is not finite, there will be no update."""
        self.accelerator.unscale_gradients()
        norms = [_norm(part, limit) for part in (self.model.policy, self.model.critic)]
        finite = all(map(math.isfinite, torch.stack(norms).tolist()))
        if not finite:
            self.model.zero_grad()
        if self.rl_step:
            skipped = norms[0].new_tensor(1.0 - finite)
            measured = {"policy/grad_norm": norms[0], "value/grad_norm": norms[1], "skipped_updates": skipped}
            self.rl_step.add(measured, 1 / self.processes)
        return norms[0]

    @property
    def processes(self) -> int:
        """How many train together, each on a batch of its own."""
        return cast(int, self.args.world_size) if self.args.parallel_mode == ParallelMode.DISTRIBUTED else 1


def _norm(part: nn.Module, limit: float) -> Tensor:
    return cast(Tensor, gathered(clip_grad_norm_([p for p in part.parameters() if p.grad is not None], limit)))


def _warm_up_apart(schedule: Any, steps: int) -> None:
    """Have the groups that are marked so rise linearly over `steps`, by a warmup in place of the schedule's own."""
    groups = schedule.optimizer.param_groups
    marked = [index for index, group in enumerate(groups) if group.get(OWN_WARMUP)]
    if not isinstance(schedule, LambdaLR) or not marked:
        raise ValueError(
            f"value_warmup_steps={steps}: it needs the optimizer that PPOTrainer makes, and a schedule that is a"
            " function of the step, such as lr_scheduler_type='constant_with_warmup'; leave it out with others"
        )
    for index in marked:
        schedule.lr_lambdas[index] = partial(_risen, _without_warmup(schedule.lr_lambdas[index]), steps)
        groups[index]["lr"] = schedule.base_lrs[index] * schedule.lr_lambdas[index](0)
    schedule._last_lr = [group["lr"] for group in groups]


def check_given(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError where a user's optimizer lacks a parameter that is to be trained."""
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in known:
            raise ValueError(
                f"optimizers=({type(optimizer).__name__}, ...) lacks {name}, which would never be trained: give it all"
                " that is, value_model's as well, or leave optimizers out"
            )


def _risen(shape: Callable[[int], float], steps: int, step: int) -> float:
    return min(1.0, (step + 1) / steps) * shape(step)


def _without_warmup(shape: Any) -> Callable[[int], float]:
    """A schedule of transformers' from its peak on."""
    known = getattr(shape, "keywords", {})
    if "num_warmup_steps" in known:
        stable = known.get("num_stable_steps")  # which is counted from the warmup's end
        longer = {} if stable is None else {"num_stable_steps": stable + known["num_warmup_steps"]}
        return partial(shape, num_warmup_steps=0, **longer)
    return cast("Callable[[int], float]", shape)
