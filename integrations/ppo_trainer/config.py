"""The settings of `PPOTrainer`: transformers' `TrainingArguments`, and PPO's under the names that TRL has for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import TrainingArguments

from adaptive_warmup.ppo.config import PPOConfig as Algorithm

# By our name, the name in `adaptive_warmup.ppo.PPOConfig`.
_ALGORITHM = {
    "num_mini_batches": "mini_batches",
    "num_ppo_epochs": "epochs",
    "learning_rate": "learning_rate",
    "value_learning_rate": "value_learning_rate",
    "cliprange": "clip_range",
    "cliprange_value": "value_clip_range",
    "kl_coef": "kl_coef",
    "kl_in": "kl_in",
    "gamma": "gamma",
    "lam": "lam",
    "whiten_rewards": "whiten_rewards",
    "entropy_coef": "entropy_coef",
    "max_completion_length": "max_response_tokens",
    "temperature": "temperature",
}


def _says(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class PPOConfig(TrainingArguments):
    """`TrainingArguments` with PPO's settings; names are TRL's where it has one, `--help` says what each is.

    A step is one optimizer update, as everywhere in transformers. An RL step, from one rollout to the next, takes
    `num_ppo_epochs * num_mini_batches` of them. A rollout has `per_device_train_batch_size *
    gradient_accumulation_steps * num_mini_batches` episodes on each process.

    Raises:
        ValueError: a setting is out of its range.
    """

    learning_rate: float = field(default=1e-6, metadata=_says("Peak lr of the policy."))
    value_learning_rate: float = field(default=1e-5, metadata=_says("Peak lr of the value model."))
    value_warmup_steps: int | None = field(
        default=None,
        metadata=_says("Updates over which the value model's lr rises, by a warmup of its own; None: as the policy's."),
    )
    logging_steps: float = field(
        default=10, metadata=_says("Steps (optimizer updates) between logs, whose metrics are means over them.")
    )

    num_ppo_epochs: int = field(default=1, metadata=_says("Passes over each rollout."))
    num_mini_batches: int = field(default=1, metadata=_says("Equal parts of a rollout, one optimizer update each."))
    total_episodes: int | None = field(
        default=None, metadata=_says("Episodes of the whole run; sets max_steps, rounded up to rollouts.")
    )
    max_completion_length: int = field(
        default=256, metadata=_says("Tokens after the prompt, an environment's insertions included.")
    )
    temperature: float = field(default=1.0, metadata=_says("Of the sampling, and so of the policy that is trained."))
    missing_eos_penalty: float | None = field(
        default=None, metadata=_says("Taken off the score of a completion cut at max_completion_length. Positive.")
    )
    reward_weights: list[float] | None = field(
        default=None, metadata=_says("Of each reward function in the score; None: all 1.")
    )
    kl_coef: float = field(default=0.05, metadata=_says("Weight of the KL to the reference, per nat."))
    kl_in: Literal["reward", "loss"] = field(
        default="reward", metadata=_says("'reward': k1, token by token; 'loss': k3, token mean.")
    )
    cliprange: float = field(default=0.2, metadata=_says("Clip range of the probability ratio."))
    cliprange_value: float = field(
        default=0.2, metadata=_says("How far a value may move from its old one before its loss stops pulling.")
    )
    vf_coef: float = field(default=0.1, metadata=_says("Weight of the value loss in the sum of the losses."))
    gamma: float = field(default=1.0, metadata=_says("Discount per response token."))
    lam: float = field(default=0.95, metadata=_says("Lambda of GAE."))
    whiten_rewards: bool = field(
        default=False, metadata=_says("Scale the tokens' rewards to variance 1 over the rollout.")
    )
    entropy_coef: float = field(default=0.0, metadata=_says("Weight of the entropy bonus."))
    measure_kl: bool = field(
        default=True,
        metadata=_says(
            "Measure how far the RL step moved the policy: a forward over a quarter of it, at least 16 episodes."
        ),
    )
    local_rollout_forward_batch_size: int | None = field(
        default=None,
        metadata=_says(
            "Episodes that are sampled, or measured, in one forward; None: all of a process are sampled at once, which"
            " is fastest, and per_device_train_batch_size measured."
        ),
    )
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata=_says("Arguments of from_pretrained for models given by name or path; dtype is float32 if not here."),
    )

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]  # noqa: RUF012

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.remove_unused_columns = False  # they are for the reward functions
        if self.neftune_noise_alpha is not None:
            words = "the policy that is updated would not be the one that sampled; leave it out"
            raise ValueError(f"neftune_noise_alpha={self.neftune_noise_alpha!r}: {words}")
        if self.auto_find_batch_size:
            words = (
                "a rollout is made for per_device_train_batch_size; lower that, and raise gradient_accumulation_steps"
            )
            raise ValueError(f"auto_find_batch_size=True: {words}")
        for name in ("vf_coef", "missing_eos_penalty"):
            if not 0 <= (getattr(self, name) or 0) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)!r}: give a finite number, 0 or more")
        for name in ("total_episodes", "local_rollout_forward_batch_size", "value_warmup_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: give a count of 1 or more, or None")
        for name in ("num_ppo_epochs", "num_mini_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: give a count of 1 or more")
        rollout = self.algorithm().batch_size
        if self.total_episodes is not None:
            self.max_steps = math.ceil(self.total_episodes / rollout) * self.updates_per_rollout

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer updates in an RL step."""
        return self.num_ppo_epochs * self.num_mini_batches

    @property
    def local_episodes(self) -> int:
        """Episodes of a rollout on one process."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_mini_batches

    def algorithm(self) -> Algorithm:
        """The settings of `adaptive_warmup.ppo` that these are."""
        settings = {theirs: getattr(self, ours) for ours, theirs in _ALGORITHM.items()}
        try:
            return Algorithm(batch_size=self.local_episodes * self.world_size, **settings)
        except ValueError as error:  # by the name that the user gave it
            theirs, text = str(error).split("=", 1)
            ours = {name: own for own, name in _ALGORITHM.items()}
            raise ValueError(f"{ours.get(theirs, theirs)}={text}") from None
