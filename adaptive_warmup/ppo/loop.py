"""PPO for language models on one page: sample, score, update, measure, set the learning rate.

`PPO.step` is one RL step, top to bottom. What its pieces compute is in `rollout`, `advantages`, `losses`, `model` and
`update`; what its numbers mean is in `metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import ConstantLR, LRScheduler
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adaptive_warmup.ppo.config import PPOConfig
from adaptive_warmup.ppo.environment import Environment, Problem, Split
from adaptive_warmup.ppo.generators import draw_seed, resume
from adaptive_warmup.ppo.model import ActorCritic, ValueHead, ValueModel, check_apart, check_padding, check_vocabulary
from adaptive_warmup.ppo.rollout import Rollout, rollout
from adaptive_warmup.ppo.update import Batch, assess, mini_batch_losses, mini_batches, policy_kl, rollout_metrics
from adaptive_warmup.quoting import plural

POLICY, VALUE = 0, 1  # the optimizer's parameter groups


class PPO:
    """Trains `policy` on `environment` with PPO (Schulman et al. 2017) and a KL penalty to `reference`.

    All models are put in eval mode, and trained in it: with dropout the policy that is updated would not be the one
    that sampled, so the probability ratios would not start at 1 and every sampled KL would be biased.

    Args:
        config: the settings.
        policy: a causal LM of transformers with a KV cache; trained in place.
        reference: where the KL penalty points; frozen. Not the policy itself: `copy.deepcopy(policy)`.
        environment: the task.
        tokenizer: the policy's; its end-of-text token ends an episode, as do those of the policy's `generation_config`
            where that came with the checkpoint.
        critic: a `ValueModel`, or a `ValueHead` on the policy's trunk. By default a copy of the policy's transformer.
        scheduler: makes the learning-rate scheduler from the optimizer, whose group 0 is the policy's and group 1 the
            critic's; its `step()`, without arguments, is called once per RL step. One with `observe`, such as
            `AdaptiveWarmup`, is told first what the step was like. By default the rates stay as they are.

    Raises:
        ValueError: models share parameters that one of them trains, reference or critic knows fewer tokens than the
            policy, or the policy takes padding for text.
    """

    def __init__(
        self,
        config: PPOConfig,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        environment: Environment,
        tokenizer: PreTrainedTokenizerBase,
        critic: ValueModel | ValueHead | None = None,
        scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    ) -> None:
        check_apart(policy, reference, critic)
        check_vocabulary(len(tokenizer), policy, reference, critic)
        check_padding(policy)
        self.config, self.environment, self.tokenizer = config, environment, tokenizer
        self.policy, self.reference = policy, reference.train(False).requires_grad_(False)
        self.critic = critic if critic is not None else ValueModel.copy_of(policy)
        self.model = ActorCritic(policy, self.critic, config.temperature).train(False)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.policy.parameters() if p.requires_grad], "lr": config.learning_rate},
                {"params": [p for p in self.critic.parameters() if p.requires_grad], "lr": config.value_learning_rate},
            ],
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        make_scheduler = scheduler or (lambda optimizer: ConstantLR(optimizer, factor=1.0, total_iters=0))
        self.scheduler = make_scheduler(self.optimizer)
        self.choices = torch.Generator().manual_seed(config.seed)  # of problems and mini-batches
        self.tokens = torch.Generator(policy.device).manual_seed(draw_seed(self.choices))
        self.steps_done = 0

    def run(self, steps: int, progress: bool = True) -> Iterator[dict[str, float]]:
        """Yields the metrics of each of the next `steps` RL steps, under a progress bar."""
        bar = tqdm(range(steps), disable=not progress, unit="step")
        for _ in bar:
            metrics = self.step()
            shown = {"score": metrics["objective/scores"], "kl": metrics["policy/kl"], "lr": metrics["lr"]}
            bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, refresh=False)
            yield metrics

    def step(self) -> dict[str, float]:
        """One RL step; returns its metrics, which `metrics.METRICS` defines."""
        config = self.config
        rates = {"lr": self.optimizer.param_groups[POLICY]["lr"], "value_lr": self.optimizer.param_groups[VALUE]["lr"]}
        problems = self.environment.sample(config.batch_size, draw_seed(self.choices))
        if len(problems) != config.batch_size:
            name = type(self.environment).__name__
            raise ValueError(
                f"{name}.sample({config.batch_size}, ...) gave {plural(len(problems), 'problem')}: have it give as many"
            )
        episodes = self._rollout(problems, self.tokens)
        batch = assess(config, self.model, self.reference, episodes)
        parts = mini_batches(config, config.batch_size, self.choices)
        updates = [self._update(batch.rows(index.to(self.policy.device))) for index in parts]
        moved = {"policy/kl": policy_kl(config, self.policy, batch)}
        metrics = _average(updates) | moved | rollout_metrics(config, episodes.scores_B, batch)
        values = torch.stack([value.float() for value in metrics.values()]).tolist()  # one read for all of them
        report = dict(zip(metrics, values, strict=True)) | {name: float(rate) for name, rate in rates.items()}
        self._tell_scheduler(report)
        self.scheduler.step()
        self.steps_done += 1
        return report

    def evaluate(self, problems_count: int, seed: int, split: Split = "eval") -> float:
        """The mean score over `problems_count` episodes, sampled as in training; leaves the training untouched."""
        if problems_count < 1:
            raise ValueError(f"problems_count={problems_count!r}: give a count of 1 or more")
        problems = self.environment.sample(problems_count, seed, split)
        generator = torch.Generator(self.policy.device).manual_seed(seed)
        size = self.config.batch_size
        parts = [self._rollout(problems[i : i + size], generator) for i in range(0, problems_count, size)]
        return float(torch.cat([part.scores_B for part in parts]).mean())

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs besides the arguments of `PPO`, the reference among them.

        As torch's own, it refers to the live tensors: save it or copy it before the next step. What comes back from
        `torch.load(weights_only=True)` continues bit for bit on CPU. On another kind of device than it was saved on, a
        run goes on with other random numbers.
        """
        return {
            "policy": self.policy.state_dict(),
            "critic": self.critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "choices": self.choices.get_state(),
            "tokens": self.tokens.get_state(),
            "steps_done": self.steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the run that `state_dict` described."""
        for part in ("policy", "critic", "optimizer", "scheduler"):
            getattr(self, part).load_state_dict(state[part])
        resume(self.choices, state["choices"])
        resume(self.tokens, state["tokens"])
        self.steps_done = state["steps_done"]

    def _rollout(self, problems: Sequence[Problem], generator: torch.Generator) -> Rollout:
        return rollout(
            self.policy,
            self.tokenizer,
            self.environment,
            problems,
            max_response_tokens=self.config.max_response_tokens,
            temperature=self.config.temperature,
            generator=generator,
            value_head=self.model.value_head,
        )

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        """One optimizer update, unless a gradient is not finite; returns the in-loop metrics."""
        policy_loss, value_loss, metrics = mini_batch_losses(self.config, self.model, batch)
        self.optimizer.zero_grad()
        torch.autograd.backward(policy_loss + value_loss)
        norms = torch.stack([self._clip(POLICY), self._clip(VALUE)])
        finite = self._check_gradients(norms.tolist())
        if finite:
            self.optimizer.step()
        skipped = norms.new_tensor(float(not finite))
        return metrics | {"policy/grad_norm": norms[0], "value/grad_norm": norms[1], "skipped_updates": skipped}

    def _clip(self, group: int) -> Tensor:
        """Clips the gradients of one group and returns their norm before it."""
        return clip_grad_norm_(self.optimizer.param_groups[group]["params"], self.config.max_grad_norm)

    def _check_gradients(self, norms: list[float]) -> bool:
        """Shows the norms to a scheduler that wants them before the update; says whether to make it."""
        check = getattr(self.scheduler, "check_gradient", None)
        if check is not None:
            for group in self._controlled_groups():
                check(norms[group], group)
        return all(map(math.isfinite, norms))

    def _tell_scheduler(self, metrics: dict[str, float]) -> None:
        observe = getattr(self.scheduler, "observe", None)
        if observe is None:
            return
        signals = {
            "kl": "policy/kl",
            "reference_kl": "policy/reference_kl",
            "task_reward": "objective/scores",
            "kl_reward": "objective/non_score_reward",
            "grad_norm": "policy/grad_norm",
            "loss": "loss/policy_avg",
            "clip_fraction": "policy/clipfrac_avg",
            "entropy": "policy/entropy_avg",
            "explained_variance": "value/explained_variance",
        }
        observe(**{signal: metrics[name] for signal, name in signals.items()}, group=POLICY)
        if VALUE in self._controlled_groups():
            observe(grad_norm=metrics["value/grad_norm"], loss=metrics["loss/value_avg"], group=VALUE)

    def _controlled_groups(self) -> tuple[int, ...]:
        """The groups that a feedback scheduler wants to hear of by themselves."""
        return (POLICY, VALUE) if getattr(self.scheduler, "per_group", False) else (POLICY,)


def _average(updates: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    means = {name: torch.stack([update[name] for update in updates]).mean() for name in updates[0]}
    return means | {"skipped_updates": means["skipped_updates"] * len(updates)}  # a count, not a mean
