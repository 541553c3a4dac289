"""Checkpoints of a `PPOTrainer`: those of its policy, as any Trainer's, with the value model and the RL step beside.

So `from_pretrained` of a checkpoint, or of what was pushed to the hub, gives the policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer
from transformers.utils import logging

from adaptive_warmup.integrations.ppo_trainer.config import PPOConfig
from adaptive_warmup.integrations.ppo_trainer.rl_step import RLStep
from adaptive_warmup.ppo.generators import resume

VALUE_MODEL = "value_model.safetensors"
_log = logging.get_logger(__name__)


class Checkpoints(Trainer):
    """A Trainer whose model has a policy and a critic, and whose RL steps go on where a checkpoint left them."""

    args: PPOConfig
    model: Any  # a PolicyAndValue, but for the moments in which it is its policy
    optimizer: Any
    processing_class: Any
    rl_step: RLStep | None
    choices: torch.Generator
    tokens: torch.Generator

    @contextmanager
    def _as_policy(self) -> Iterator[None]:
        """With the policy as the model of the Trainer."""
        whole = self.model
        self.model = whole.policy
        try:
            yield
        finally:
            self.model = whole

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        folder = Path(str(output_dir or self.args.output_dir))
        critic = self.model.critic.state_dict() if state_dict is None else _part("critic.", state_dict)
        with self._as_policy():
            super()._save(str(folder), None if state_dict is None else _part("policy.", state_dict))
        if self.args.should_save:
            once = dict.fromkeys(_first_names(self.model.critic).values())
            save_file({name: critic[name].contiguous() for name in once}, folder / VALUE_MODEL)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:  # it saves and loads the model in one
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        with self._as_policy():
            super()._load_from_checkpoint(resume_from_checkpoint)
        self._load_critic(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
            return
        with self._as_policy():
            super()._load_best_model()
        self._load_critic(str(self.state.best_model_checkpoint))

    def _load_critic(self, folder: str) -> None:
        path = Path(folder) / VALUE_MODEL
        if not path.exists():
            raise ValueError(f"{folder} has no {VALUE_MODEL}: it is no checkpoint of a PPOTrainer; give one of those")
        saved, names = load_file(path), _first_names(self.model.critic)
        shared = {name: saved[first] for name, first in names.items() if first in saved}
        self.model.critic.load_state_dict(saved | shared)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The policy's, tagged as made by PPO."""
        with self._as_policy():
            super().create_model_card(*args, **{"tags": ["ppo", "adaptive-warmup"], **kwargs})

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        state = {
            "processes": self.args.world_size,
            "choices": self.choices.get_state(),
            "tokens": self.tokens.get_state(),
            "rl_step": self.rl_step.state_dict() if self.rl_step else None,
        }
        torch.save(state, self._rl_state(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        path = self._rl_state(checkpoint)
        state = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
        self._check_processes(checkpoint, state)
        if state is None:
            _log.warning("%s is missing: this process goes on with a new rollout and new random numbers", path)
            return
        resume(self.choices, state["choices"])
        resume(self.tokens, state["tokens"])
        begun = send_to_device(state["rl_step"], self.accelerator.device)
        self.rl_step = RLStep.from_state(begun) if begun else None

    def _check_processes(self, checkpoint: str, state: dict[str, Any] | None) -> None:
        """An RL step under way goes on as it was begun, or for all not at all: they would wait for each other."""
        now = self.args.world_size
        mine = None if state is None else (state.get("processes", now), state["rl_step"] is not None)
        found = gather_object([mine])
        if any(one and one[1] for one in found) and any(one != (now, True) for one in found):
            before = next(one[0] for one in found if one and one[1])
            raise ValueError(
                f"{checkpoint} lies within an RL step of {before} processes, all of whose rl_state_*.pt it takes to go"
                f" on, and here are {now} with {sum(map(bool, found))} of these files: resume with what it was saved"
                f" with, or from a checkpoint at a multiple of {self.args.updates_per_rollout} steps."
            )

    def _rl_state(self, folder: str) -> Path:
        return Path(folder) / f"rl_state_{self.args.process_index}.pt"


def _part(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _first_names(module: nn.Module) -> dict[str, str]:
    """By every name of a tensor, the first that it has: safetensors takes a tensor of several names only once."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in module.state_dict(keep_vars=True).items()}
