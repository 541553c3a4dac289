"""The rollouts of a `PPOTrainer`, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader

from adaptive_warmup.integrations.ppo_trainer.gradients import TwoParts
from adaptive_warmup.integrations.ppo_trainer.prompts import problem
from adaptive_warmup.integrations.ppo_trainer.rewards import Scores
from adaptive_warmup.integrations.ppo_trainer.sharding import whole
from adaptive_warmup.ppo.config import PPOConfig as Algorithm
from adaptive_warmup.ppo.model import LanguageModel
from adaptive_warmup.ppo.rollout import Rollout, sample_episodes
from adaptive_warmup.ppo.update import Batch, assess, rollout_metrics

_EVALUATED = ("objective/", "response_length", "policy/reference_kl")


class RolloutTrainer(TwoParts):
    """A Trainer that samples episodes and has them scored and assessed."""

    algorithm: Algorithm
    reference: LanguageModel
    scores: Scores

    def _rollout(self, rows: Sequence[Any], generator: torch.Generator) -> tuple[Rollout, dict[str, list[float]]]:
        column = None if self.scores.environment is None else "answer"
        with self._still():
            episodes = sample_episodes(
                self.model.policy,
                self.processing_class,
                self.scores.turns,
                [problem(row, self.processing_class, column) for row in rows],
                max_response_tokens=self.algorithm.max_response_tokens,
                temperature=self.algorithm.temperature,
                generator=generator,
                value_head=self.model.value_head,
                rows=self.args.local_rollout_forward_batch_size,
            )
        scores, rewards = self.scores(episodes, self.state)
        return episodes.scored(scores), rewards

    def _assess(self, rollout: Rollout) -> tuple[Batch, dict[str, Tensor]]:
        with self._still():
            batch = assess(self.algorithm, self.model, self.reference, rollout, self._rows, self._total)
        return batch, rollout_metrics(self.algorithm, rollout.scores_B, batch, self._total)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Sample as in training, by random numbers of its own: the same in every evaluation."""
        self._evaluated: list[tuple[int, dict[str, Tensor]]] = []
        self._drawing = torch.Generator(self.args.device)
        self._drawing.manual_seed(self.args.seed + self.args.process_index)
        found = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        metrics = cast("dict[str, float]", found.metrics)
        sizes = [size for size, _ in self._evaluated]
        for name in self._evaluated[0][1] if self._evaluated else ():
            values = torch.stack([each[name] for _, each in self._evaluated]).tolist()
            mean = sum(size * value for size, value in zip(sizes, values, strict=True)) / sum(sizes)
            metrics[f"{metric_key_prefix}_{name}"] = mean
        return found

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """The loss of an evaluation: minus what is to be had, score and KL reward."""
        rollout, _ = self._rollout(inputs, self._drawing)
        _, metrics = self._assess(rollout)
        self._evaluated.append((len(inputs), {k: v for k, v in metrics.items() if k.startswith(_EVALUATED)}))
        return -metrics["objective/rlhf_reward"], None, None

    @property
    def _rows(self) -> int:
        """Episodes in one forward that measures."""
        return self.args.local_rollout_forward_batch_size or self.args.per_device_train_batch_size

    @contextmanager
    def _still(self) -> Iterator[None]:
        """As in an update, but for the gradients, and with all parameters on each process."""
        training = self.model.training
        self.model.train(False)
        try:
            with torch.no_grad(), self.accelerator.autocast(), whole(self.model, self.accelerator):
                yield
        finally:
            self.model.train(training)

    def _total(self, sums: Tensor) -> Tensor:
        """Added up over the processes."""
        if self.processes > 1:
            sums = sums.clone()
            distributed.all_reduce(sums)
        return sums
