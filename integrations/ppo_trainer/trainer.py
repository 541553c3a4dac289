"""`PPOTrainer`: the loop is the Trainer's; what PPO computes is in `adaptive_warmup.ppo`.

Before the first micro-batch of an RL step comes its rollout; the Trainer's own steps update on it; after the last of
them the step is measured.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from adaptive_warmup.integrations.ppo_trainer.config import PPOConfig
from adaptive_warmup.integrations.ppo_trainer.gradients import check_given
from adaptive_warmup.integrations.ppo_trainer.model import (
    PolicyAndValue,
    make_critic,
    make_policy,
    make_reference,
    warn_of_coarse,
)
from adaptive_warmup.integrations.ppo_trainer.prompts import RolloutSampler, check_dataset, check_prompts, tokenizer_of
from adaptive_warmup.integrations.ppo_trainer.rewards import RewardFunction, Scores
from adaptive_warmup.integrations.ppo_trainer.rl_step import RLStep
from adaptive_warmup.integrations.ppo_trainer.rollouts import RolloutTrainer
from adaptive_warmup.integrations.ppo_trainer.sharding import check_plugin, place_reference
from adaptive_warmup.ppo.cache import check_adapter
from adaptive_warmup.ppo.environment import Environment
from adaptive_warmup.ppo.generators import draw_seed
from adaptive_warmup.ppo.model import ValueHead, ValueModel, check_apart, check_padding, check_vocabulary
from adaptive_warmup.ppo.update import mini_batch_losses, policy_kl

_PRESENT = ("episode", "value_lr")  # logged as they are now
_LEAST = 16  # episodes to measure the policy KL on, where there are as many


class PPOTrainer(RolloutTrainer):
    """PPO for language models (Schulman et al. 2017, with a KL penalty to a reference), as a `transformers.Trainer`.

        trainer = PPOTrainer("name/or/path", PPOConfig(...), reward_funcs=reward, train_dataset=prompts)
        trainer.train()

    All dropout is set to 0 (but Falcon's and Persimmon's, which is their config's): with it the policy that is updated
    would not be the one that sampled. What is logged is in `adaptive_warmup.ppo.METRICS`, and
    `rewards/<function>/mean`, `episode` (so far), `eps` (episodes a second).

    Args:
        model: the policy, a causal LM with a KV cache; or its name or path, to be loaded in float32 unless
            `model_init_kwargs` has another dtype.
        args: the settings.
        reward_funcs: `f(prompts, completions, completion_ids, trainer_state, **columns)`, which returns a number for
            each completion, or None where it has none; or a list of them, which are added up.
        environment: in their place, a task with turns that scores its episodes.
        train_dataset: rows with a column `prompt` (text, or a conversation) and whatever the reward functions read; an
            environment is told the column `answer`. Or `Problem`s, as an environment's `sample` gives them.
        eval_dataset: the same, or a dict of them. `eval_loss` is minus `eval_objective/rlhf_reward`.
        processing_class: the tokenizer; by default the one that belongs to the model.
        ref_model: where the KL penalty points. By default the policy as it is now, or without its adapter.
        value_model: the critic: a `ValueModel`, a `ValueHead` on the policy's trunk, a transformers model whose
            transformer is taken, or its name or path. By default a copy of the policy's transformer; where the policy
            has an adapter, a `ValueHead`.
        peft_config: of an adapter to train in place of the policy's own weights.
        callbacks: as any Trainer's.
        optimizers: as any Trainer's.

    Raises:
        ValueError, TypeError: what is missing, or does not fit, with the remedy.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: PPOConfig | None = None,
        *,
        reward_funcs: RewardFunction | Sequence[RewardFunction] | None = None,
        environment: Environment | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        ref_model: PreTrainedModel | str | None = None,
        value_model: ValueModel | ValueHead | PreTrainedModel | str | None = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = PPOConfig() if args is None else args
        init = cast("dict[str, Any]", args.model_init_kwargs or {})
        if not init.keys() & {"dtype", "torch_dtype"}:
            # A checkpoint's own may be of 16 bits, too coarse for an optimizer. Beside a model, as that is.
            init = {**init, "dtype": "float32" if isinstance(model, str) else model.dtype}
        self.scores = Scores(reward_funcs, environment, args.reward_weights, args.missing_eos_penalty)
        policy = make_policy(model, init, peft_config)
        check_adapter(policy)
        tokenizer = tokenizer_of(policy, processing_class)
        self._check_data(policy, tokenizer, args, train_dataset, eval_dataset, environment is not None)
        if args.n_gpu > 1:
            raise ValueError(f"one process has {args.n_gpu} GPUs: use `accelerate launch`, or CUDA_VISIBLE_DEVICES=0")
        self.algorithm = args.algorithm()
        reference = make_reference(ref_model, policy, init)
        critic = make_critic(value_model, policy, init)
        check_apart(policy, reference, critic)
        check_vocabulary(len(tokenizer), policy, reference, critic)
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = _senses(policy, critic)
        super().__init__(
            PolicyAndValue(policy, critic, args.temperature),
            args,
            data_collator=_as_they_are,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=[_Measures(self), *(callbacks or [])],
            optimizers=optimizers,
        )
        check_padding(policy)  # on its device by now
        if optimizers[0] is not None:
            check_given(self.model, optimizers[0])
        if self.accelerator.distributed_type != "DEEPSPEED":  # as newer Trainers have it: else Accelerate divides, too
            self.accelerator.gradient_accumulation_steps = 1
            warn_of_coarse(policy)
        check_plugin(getattr(self.accelerator.state, "fsdp_plugin", None))
        self.reference = place_reference(reference, self.model, self.accelerator)
        self.rl_step: RLStep | None = None
        self.choices = torch.Generator().manual_seed(args.seed + args.process_index)  # of mini-batches
        self.tokens = torch.Generator(args.device).manual_seed(draw_seed(self.choices))
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}
        self._since = time.perf_counter()

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer updates, which are the Trainer's steps, in an RL step."""
        return self.args.updates_per_rollout

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As any Trainer's; begins with a rollout, or within one where a checkpoint was saved there."""
        self.rl_step = None
        self._since = time.perf_counter()
        self._metrics["train"].clear()
        return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The rows of a whole rollout for each of its micro-batches."""
        if self.train_dataset is None:
            raise ValueError("there is no train_dataset: give PPOTrainer one, of prompts")
        return self._get_dataloader(
            cast(Any, self.train_dataset), "Training", self.args.local_episodes, self._get_train_sampler, True
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> RolloutSampler:
        def epoch(rollouts: int) -> int:
            return self.state.global_step // (rollouts * self.updates_per_rollout)

        rows = len(cast(Any, self.train_dataset if train_dataset is None else train_dataset))
        repeats = self.updates_per_rollout * self.args.gradient_accumulation_steps
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        return RolloutSampler(rows, self.algorithm.batch_size, repeats, seed, epoch)

    def _prepare_inputs(self, inputs: Any) -> dict[str, Any]:
        if self.rl_step is None:
            self.rl_step = self._begin(inputs)
        batch, weight = self.rl_step.next()
        return {"batch": batch, "weight": weight}

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The share of a micro-batch in the loss of its mini-batch."""
        batch, weight = inputs["batch"], inputs["weight"]
        policy_loss, value_loss, metrics = mini_batch_losses(self.algorithm, cast(PolicyAndValue, model), batch)
        cast(RLStep, self.rl_step).add(metrics, weight)
        # Gradients are averaged over the processes, and the weights add up to 1 over all of them.
        share: Tensor = weight * self.processes * self._undivided
        return share * (policy_loss + self.args.vf_coef * value_loss)

    @property
    def _undivided(self) -> int:
        """What a Trainer that does not know `loss_is_scaled_for_ga` divides a loss by: its update's micro-batches."""
        return 1 if hasattr(Trainer, "loss_is_scaled_for_ga") else self.current_gradient_accumulation_steps

    def _begin(self, rows: Sequence[Any]) -> RLStep:
        rollout, rewards = self._rollout(rows, self.tokens)
        batch, report = self._assess(rollout)
        for name, known in rewards.items():
            total, count = self._total(report["objective/scores"].new_tensor([sum(known), len(known)])).unbind()
            if float(count):  # else none of the completions was its to judge
                report[f"rewards/{name}/mean"] = total / count
        # Within an RL step where a checkpoint was that had none: the rest of it, so that the next ones end as ever.
        made, accumulation = self.state.global_step % self.updates_per_rollout, self.args.gradient_accumulation_steps
        return RLStep.begin(self.algorithm, batch, accumulation, report, self.choices, self._total, made)

    def after_update(self) -> None:
        """After the last update of an RL step, or of the run: measure what the RL step did, and report it."""
        step = self.rl_step
        if step is None or not (step.finished or self.state.global_step + 1 >= self.state.max_steps):
            return
        self._measure(step)
        self._metrics["train"]["value_lr"].append(float(self.optimizer.param_groups[-1]["lr"]))
        if step.finished:  # else a longer run, resumed from here, goes on with it
            self.rl_step = None

    def _measure(self, step: RLStep) -> None:
        metrics = step.averages(self._total) | step.report
        if self.args.measure_kl:
            with self._still():
                some = step.batch.rows(slice(max(_LEAST, len(step.batch.returns_BT) // 4)))  # they are in random order
                metrics["policy/kl"] = policy_kl(self.algorithm, self.model.policy, some, self._rows, self._total)
        values = torch.stack([value.float() for value in metrics.values()]).tolist()  # one read for all of them
        for name, value in (*zip(metrics, values, strict=True), *self._pace()):
            self._metrics["train"][name].append(value)

    def _pace(self) -> Iterator[tuple[str, float]]:
        size, now = self.algorithm.batch_size, time.perf_counter()
        yield "episode", float(math.ceil((self.state.global_step + 1) / self.updates_per_rollout) * size)
        yield "eps", size / (now - self._since)
        self._since = now

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With the logs of training, the means over the RL steps since the last one; what counts now is the last."""
        if "loss" in logs:
            if self.rl_step and self.control.should_training_stop and self.state.global_step < self.state.max_steps:
                self._measure(self.rl_step)  # which a callback has cut short
            found = self._metrics["train"]
            logs |= {name: sum(values) / len(values) for name, values in found.items()}
            logs |= {name: found[name][-1] for name in _PRESENT if name in found}
        super().log(logs, start_time)
        if "loss" in logs:  # after the callbacks have seen what was gathered by itself
            self._metrics["train"].clear()

    @staticmethod
    def _check_data(
        policy: Any, tokenizer: Any, args: PPOConfig, train_dataset: Any, eval_dataset: Any, scored: bool
    ) -> None:
        evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
        for name, dataset in {"train_dataset": train_dataset, **evaluated}.items():
            if dataset is not None:
                check_dataset(dataset, name, scored)
                limit = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
                check_prompts(dataset, tokenizer, limit, args.max_completion_length)


class _Measures(TrainerCallback):
    """Tells the trainer that an update is done, before other callbacks ask what it did."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimizer has stepped, the lr has not."""
        self.trainer.after_update()


def _as_they_are(rows: list[Any]) -> Any:
    return rows


def _senses(*parts: nn.Module) -> bool:
    """Whether a model has parts that text does not reach, as those that see: DDP would wait for their gradients."""
    models = [module for part in parts for module in part.modules() if isinstance(module, PreTrainedModel)]
    return any(model.config.get_text_config() is not model.config for model in models)
