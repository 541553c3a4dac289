"""Runs of verl on this machine's CPU, by its own command: two workers under Ray, a model of a few thousand weights."""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from environment import ENVIRONMENT
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

PEAK, RAMP = 0.01, 4  # the lr of a worker's schedule, and the steps of its own warmup

LETTERS = (string.ascii_letters + string.digits)[:61]


def make_model(folder: Path) -> Path:
    """A Qwen2 of random weights with a tokenizer of letters: transformers makes Qwen2's for it, whatever was saved."""
    letters = {letter: index for index, letter in enumerate(["<pad>", "<eos>", "<unk>", *LETTERS])}
    tokenizer = Qwen2Tokenizer(letters, [], pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    config = Qwen2Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_prompts(path: Path, count: int = 64) -> Path:
    """Prompts as verl reads them."""
    row = {"data_source": "none", "reward_model": {}}
    asked = [[{"role": "user", "content": f"ab{LETTERS[index % 61]}"}] for index in range(count)]
    lines = [json.dumps(row | {"prompt": one, "extra_info": {"index": i}}) for i, one in enumerate(asked)]
    path.write_text("\n".join(lines))
    return path


def settings(folder: Path, out: Path) -> dict[str, Any]:
    """verl's, for a run as small as can be: 8 responses a step, two updates of each model on them."""
    one = {"strategy": "fsdp2", "ppo_mini_batch_size": 4, "ppo_micro_batch_size_per_gpu": 2}
    actor = {f"actor_rollout_ref.actor.{name}": value for name, value in one.items()}
    critic = {f"critic.{name}": value for name, value in one.items()}
    # In verl's bf16 the log-probs of a policy so near to uniform are rounded by more than a step moves them.
    precise = "{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}"
    return actor | critic | {
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision": precise,
        "+actor_rollout_ref.ref.fsdp_config.mixed_precision": precise,
        "actor_rollout_ref.actor.use_torch_compile": False,
        "actor_rollout_ref.actor.fsdp_config.use_torch_compile": False,
        "actor_rollout_ref.actor.optim.betas": "[0.0,0.0]",  # then an update moves each weight by the lr
        "actor_rollout_ref.actor.optim.weight_decay": 0.0,
        "actor_rollout_ref.actor.optim.lr": 0.01,
        "actor_rollout_ref.model.path": folder / "model",
        "actor_rollout_ref.model.enable_gradient_checkpointing": False,
        "actor_rollout_ref.model.use_remove_padding": False,
        "+actor_rollout_ref.model.override_config.attn_implementation": "eager",
        "actor_rollout_ref.rollout.name": "drawn",
        "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
        "+actor_rollout_ref.rollout.custom.weights": out / "weights",
        "+actor_rollout_ref.rollout.agent.agent_loop_manager_class": "drawn.Manager",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 4,
        "critic.optim.lr": 0.001,
        "critic.optim.betas": "[0.0,0.0]",
        "critic.optim.weight_decay": 0.0,
        "critic.model.path": folder / "model",
        "critic.model.enable_gradient_checkpointing": False,
        "critic.model.use_remove_padding": False,
        "+critic.model.override_config.attn_implementation": "eager",
        "data.train_files": folder / "prompts.jsonl",
        "data.val_files": folder / "prompts.jsonl",
        "data.train_batch_size": 8,
        "data.max_prompt_length": 8,
        "data.max_response_length": 12,
        "data.dataloader_num_workers": 0,
        "reward.num_workers": 1,
        "trainer.device": "cpu",
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": 2,
        "trainer.logger": "[file]",
        "trainer.val_before_train": False,
        "trainer.default_local_dir": out / "checkpoints",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "+ray_kwargs.ray_init.address": "local",
        "ray_kwargs.ray_init.num_cpus": 10,  # what verl reserves, busy or not
        "+ray_kwargs.ray_init.num_gpus": 2,
        "+ray_kwargs.ray_init.include_dashboard": False,
        "+ray_kwargs.ray_init.object_store_memory": 200_000_000,
        "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_ENGINE_VENDOR": "adaptive_warmup",
    }  # fmt: skip


def run(folder: Path, out: Path, **said: Any) -> list[dict[str, Any]]:
    """Run `python -m verl.trainer.main_ppo`; what it logged, by step. Raises AssertionError with its output."""
    out.mkdir(exist_ok=True)
    options = {**settings(folder, out), **said}
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *(f"{name}={value}" for name, value in options.items())]
    log = out / "metrics.jsonl"
    environment = os.environ | ENVIRONMENT | {"VERL_FILE_LOGGER_PATH": str(log)}
    del environment["VERL_ENGINE_VENDOR"]  # the option above carries it, as the docs have it
    with (out / "output.txt").open("w") as output:
        code = subprocess.run(command, cwd=out, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    assert code.returncode == 0, (out / "output.txt").read_text()[-6000:]
    return [json.loads(line)["data"] for line in log.read_text().splitlines()]
