"""The arms of others: each rule from its own package, where that installs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from adaptive_warmup import Config
from benchmarks.experiments.stability.driver import Arm, Driver, Plan, cosine, nominal_steps
from benchmarks.experiments.stability.engine import BETAS, MINI_BATCHES

TARGET_KL, SKRL_TARGET = 0.01, 0.008  # as the packages have them
VERL_TARGET, HORIZON = 0.1, 10_000 / (512 * 1005)  # verl's; its horizon as a share of Search-R1's episodes
PERIOD = round(1 / (1 - BETAS[1]))  # of the untuned warmups, in updates of the optimizer


def kl_adaptive(
    start: float | None,
    least: float | None,
    most: float | None,
    decay: bool = False,
    target: float = TARGET_KL,
    on: str = "kl",
    falling: bool = False,
) -> Arm:
    """torchrl's `KLAdaptiveLR`, which is rsl_rl's rule, on the KL that ours gets.

    Args:
        start: the first rate as a share of the peak; None: as ours, the first step of the nominal warmup.
        least: lower clamp as a share of the peak, None for the package's own 1e-5.
        most: likewise the upper one, None for 1e-2.
        on: the KL that it follows.
        falling: granted our KL target, which falls as 1/t.
    """

    def arm(plan: Plan) -> Driver:
        from torchrl.objectives import KLAdaptiveLR

        clamps = {} if least is None else {"min_lr": least * plan.peak}
        clamps |= {} if most is None else {"max_lr": most * plan.peak}

        def move(optimizer: torch.optim.Optimizer) -> Callable[[Mapping[str, float]], None]:
            rule = KLAdaptiveLR(optimizer, target, **clamps)
            shape, count, ours = cosine(plan), iter(range(1, plan.steps + 1)), Config(nominal_steps(plan), target)

            def step(signals: Mapping[str, float]) -> None:
                done = next(count)
                if decay:  # granted: the KL budget under our shape, shape^2
                    rule.target_kl = target * shape(done) ** 2
                if falling:
                    rule.target_kl = ours.target_at(done - 1)
                if math.isfinite(signals[on]):  # it raises an error otherwise
                    rule.step(signals[on])

            return step

        return Driver((start or 1 / nominal_steps(plan)) * plan.peak, move)

    return arm


def updates(plan: Plan) -> int:
    """Of the optimizer, in one RL step."""
    return plan.epochs * MINI_BATCHES


def greedy(plan: Plan) -> Driver:
    """transformers' `GreedyLR` from the peak down, on the task reward, since the loss of PPO says nothing."""
    from transformers.optimization import GreedyLR

    def move(optimizer: torch.optim.Optimizer) -> Callable[[Mapping[str, float]], None]:
        rule = GreedyLR(optimizer, mode="max", min_lr=1e-3 * plan.peak, max_lr=plan.peak)
        return lambda signals: rule.step(signals["task_reward"])

    return Driver(plan.peak, move)


def exponential(plan: Plan) -> Driver:
    """pytorch_warmup's untuned exponential warmup (Ma and Yarats 2021), a step of it for each update."""
    from pytorch_warmup import ExponentialWarmup

    def move(optimizer: torch.optim.Optimizer) -> Callable[[Mapping[str, float]], None]:
        warmup = ExponentialWarmup(optimizer, PERIOD)

        def step(signals: Mapping[str, float]) -> None:
            for _ in range(updates(plan)):
                with warmup.dampening():
                    pass

        return step

    return Driver(plan.peak, move)


def clipping_outliers(schedule: Arm) -> Arm:
    """ZClip (Kumar et al. 2025) as its package has it: outliers of the gradient norm are clipped, others at 1."""

    def arm(plan: Plan) -> Driver:
        from zclip import ZClip

        driver, rule, holder = schedule(plan), ZClip(), torch.nn.Module()

        def clip(gradient_W: torch.Tensor) -> None:
            if not list(holder.parameters()):
                holder.weights = torch.nn.Parameter(torch.zeros_like(gradient_W))
            holder.weights.grad = gradient_W
            rule.step(holder)

        driver.clip = clip
        return driver

    return arm


def adaptive_coefficient(schedule: Arm) -> Arm:
    """verl's adaptive KL coefficient (Ziegler et al. 2019, section 2.2), from the task's own coefficient.

    After each step it grows by the share by which the KL to the reference is off its target (at most .2) times the
    step's share of a horizon. verl's horizon of 10,000 episodes is 2 % of a run of Search-R1's; here it is 2 % as well.
    """

    def arm(plan: Plan) -> Driver:
        driver, pace = schedule(plan), 1 / (HORIZON * plan.steps)
        driver.kl_coef, inner = plan.kl_coef, driver.move

        def move(signals: Mapping[str, float]) -> None:
            inner(signals)
            if math.isfinite(kl := signals["reference_kl"]):
                driver.kl_coef *= 1 + min(max(kl / VERL_TARGET - 1, -0.2), 0.2) * pace

        driver.move = move
        return driver

    return arm
