"""What other programs' settings mean here: verl's and Search-R1's, transformers' and TRL's."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from adaptive_warmup.advice.plan import COUNT, KINDS, NOT_NEGATIVE, PAIR, WHOLE

# One table: foreign key -> our setting, or, after a dot, a raw value that `_verl` or `_trainer` makes settings of.
# A later entry for the same setting counts over an earlier one.
TABLE = {
    "verl": {
        "actor_rollout_ref.actor.optim.lr": "lr",
        "actor_rollout_ref.actor.optim.lr_warmup_steps": "warmup_steps",
        "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio": "warmup_ratio",
        "actor_rollout_ref.actor.optim.warmup_style": "schedule",
        "actor_rollout_ref.actor.optim.lr_scheduler_type": "schedule",
        "actor_rollout_ref.actor.optim.betas": ".betas",
        "trainer.total_training_steps": "total_steps",
        "data.train_batch_size": ".prompts",
        "actor_rollout_ref.rollout.n": ".n",
        "actor_rollout_ref.rollout.n_agent": ".n_agent",
        "actor_rollout_ref.actor.ppo_mini_batch_size": ".mini_batch_prompts",
        "actor_rollout_ref.actor.ppo_epochs": "epochs",
        "algorithm.adv_estimator": ".advantages",
        "algorithm.use_kl_in_reward": ".kl_in_reward",
        "algorithm.kl_ctrl.kl_coef": ".reward_kl_coef",
        "algorithm.kl_penalty": ".reward_kl_estimator",
        "actor_rollout_ref.actor.use_kl_loss": ".kl_in_loss",
        "actor_rollout_ref.actor.kl_loss_coef": ".loss_kl_coef",
        "actor_rollout_ref.actor.kl_loss_type": ".loss_kl_estimator",
        "actor_rollout_ref.rollout.temperature": "temperature",
        "actor_rollout_ref.rollout.top_p": "top_p",
        "actor_rollout_ref.rollout.top_k": "top_k",
        "actor_rollout_ref.rollout.multi_turn.enable": ".multi_turn",
        "actor_rollout_ref.rollout.multi_turn.max_assistant_turns": ".assistant_turns",
        "max_turns": "turns",  # this and the next: Search-R1's fork
        "actor_rollout_ref.actor.state_masking": "tool_tokens_masked",
        "actor_rollout_ref.model.lora_rank": ".lora_rank",
        "actor_rollout_ref.model.override_config.attention_dropout": "dropout",
    },
    "trainer": {
        "learning_rate": "lr",
        "max_steps": ".max_steps",
        "num_total_batches": ".max_steps",
        "warmup_steps": ".warmup",
        "warmup_ratio": "warmup_ratio",
        "lr_scheduler_type": "schedule",
        "adam_beta2": "beta2",
        "generation_batch_size": "batch_size",  # this and the next: of all processes; of one, a file has no number
        "batch_size": "batch_size",
        "num_mini_batches": ".num_mini_batches",
        "num_ppo_epochs": "epochs",
        "num_iterations": "epochs",
        "steps_per_generation": ".micro_batches",
        "gradient_accumulation_steps": ".accumulation",
        "beta": ".beta",
        "kl_coef": "kl_coef",
        "kl_estimator": "kl_estimator",
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "min_p": "min_p",
        "repetition_penalty": "repetition_penalty",
        "generation_kwargs.temperature": "temperature",
        "generation_kwargs.top_p": "top_p",
        "generation_kwargs.top_k": "top_k",
        "generation_kwargs.min_p": "min_p",
        "generation_kwargs.repetition_penalty": "repetition_penalty",
        "generation_kwargs.min_new_tokens": "min_new_tokens",
        "generation_kwargs.min_tokens": "min_new_tokens",  # vLLM's name
        "max_tool_calling_iterations": "turns",
        "use_peft": "lora",
        "lora_dropout": "dropout",
        "kl_in": ".kl_in",  # from here on those of our own PPOTrainer
        "lora_r": ".lora_rank",
    },
}
_FORK = {  # Search-R1's own config, for what its launch scripts leave out; known by the mask's key
    "top_p": 0.95, "temperature": 1.0, "epochs": 1, "beta2": 0.999, "turns": 10, "schedule": "constant",
    ".reward_kl_coef": 0.001, ".reward_kl_estimator": "kl", "sparse_reward": True, "reward_range": (0.0, 1.0),
    "kl_source": "in_loop",
}  # fmt: skip
_ESTIMATORS = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"} | {name: name for name in ("k1", "k2", "k3", "abs")}
_PPO = {"num_ppo_epochs", "num_mini_batches", "cliprange_value"}
_OWN = {"value_learning_rate", "value_warmup_steps", "kl_in", "measure_kl"}  # of PPOTrainer and no other
_OWN_OR_GRPO = {"max_completion_length", "task"}  # what TRL's PPO had no word for
_RLOO = {"normalize_advantages", "reward_clip_range"}
_GRPO = {"num_generations", "num_iterations", "steps_per_generation", "generation_batch_size", "epsilon_high"}


def settings_of(kind: str, said: dict[str, Any]) -> dict[str, Any]:
    """Our settings, by name, of the foreign ones of a kind (a key of `TABLE`), by dotted key."""
    raw = {ours: said[key] for key, ours in TABLE[kind].items() if key in said}
    settings = (_verl if kind == "verl" else _trainer)(raw, said.keys())
    return {name: value for name, value in settings.items() if name in KINDS and value is not None}


def _verl(raw: dict[str, Any], keys: Set[str]) -> dict[str, Any]:
    if "actor_rollout_ref.actor.state_masking" in keys:
        raw = _FORK | raw
    n, n_agent, epochs = (_count(raw, name) for name in (".n", ".n_agent", "epochs"))
    settings = raw | _verl_kl(raw) | {"host": "verl", "logprob_temperature": raw.get("temperature")}
    settings["warmup_steps"] = _if_positive(raw, "warmup_steps")
    if ".betas" in raw:
        settings["beta2"] = PAIR.read("betas", raw[".betas"])[1]
    if ".prompts" in raw:
        settings["batch_size"] = _count(raw, ".prompts") * n * n_agent
    if ".prompts" in raw and ".mini_batch_prompts" in raw:  # counted in prompts of n, but not of n_agent, responses
        settings["mini_batches"] = max(_count(raw, ".prompts") * n_agent // _count(raw, ".mini_batch_prompts"), 1)
        settings["updates_per_step"] = settings["mini_batches"] * epochs
    if ".advantages" in raw:
        settings["critic"] = raw[".advantages"] == "gae"
    if ".lora_rank" in raw:
        settings["lora"] = _if_positive(raw, ".lora_rank") is not None
    if _true(raw.get(".multi_turn")):  # verl's own loop masks what tools say
        settings |= {"turns": raw.get(".assistant_turns"), "tool_tokens_masked": True}
    return settings


def _verl_kl(raw: dict[str, Any]) -> dict[str, Any]:
    """Before there was use_kl_in_reward (and in Search-R1's fork) the KL was in the reward unless in the loss."""
    in_loss = _true(raw.get(".kl_in_loss"))
    in_reward = _true(raw[".kl_in_reward"]) if ".kl_in_reward" in raw else not in_loss and ".reward_kl_coef" in raw
    if not in_loss and not in_reward:
        return {"kl_in": "none" if ".kl_in_reward" in raw else None}
    where = "reward" if in_reward else "loss"
    estimator = _ESTIMATORS.get(str(raw.get(f".{where}_kl_estimator")).rstrip("+"))
    return {"kl_in": where, "kl_coef": raw.get(f".{where}_kl_coef"), "kl_estimator": estimator}


def _trainer(raw: dict[str, Any], keys: Set[str]) -> dict[str, Any]:
    settings = raw | {"host": "transformers", "task": "rl" if keys & (_PPO | _OWN | _RLOO | _GRPO) else "finetuning"}
    settings["total_steps"] = _if_positive(raw, ".max_steps")
    warmup = NOT_NEGATIVE.read("warmup_steps", raw.get(".warmup", 0))
    settings |= {"warmup_ratio": warmup} if 0 < warmup < 1 else {"warmup_steps": int(warmup)}
    if not _true(raw.get("lora")):
        settings["dropout"] = None  # of adapters that are not there
    if settings["task"] == "rl":
        settings |= {"logprob_temperature": raw.get("temperature"), "tool_tokens_masked": True}  # TRL sees to both
        if keys & _OWN or (keys & _PPO and keys & _OWN_OR_GRPO):
            settings |= _own(raw)
        else:
            settings |= _ppo(raw) if keys & _PPO else _group(raw, in_reward=bool(keys & _RLOO))
    return settings


def _ppo(raw: dict[str, Any]) -> dict[str, Any]:
    return {"kl_in": "reward", "kl_estimator": raw.get("kl_estimator", "k1"), "critic": True,
            "mini_batches": raw.get(".num_mini_batches"),
            "updates_per_step": _count(raw, ".num_mini_batches") * _count(raw, "epochs")}  # fmt: skip


def _own(raw: dict[str, Any]) -> dict[str, Any]:
    """Of `PPOTrainer`, whose schedule steps once an update."""
    kl_in, mini_batches = raw.get(".kl_in", "reward"), _count(raw, ".num_mini_batches")
    lora = {"lora": True} if _if_positive(raw, ".lora_rank") else {}
    return {"kl_in": kl_in, "kl_estimator": "k1" if kl_in == "reward" else "k3", "critic": True,
            "mini_batches": mini_batches, "updates_per_step": 1, **lora}  # fmt: skip


def _group(raw: dict[str, Any], *, in_reward: bool) -> dict[str, Any]:
    """RLOO has k1 in the reward, GRPO k3 in the loss, and neither any KL at beta 0."""
    kl = {"kl_in": "reward" if in_reward else "loss", "kl_coef": raw.get(".beta"),
          "kl_estimator": "k1" if in_reward else "k3"}  # fmt: skip
    if ".beta" not in raw or NOT_NEGATIVE.read("beta", raw[".beta"]) == 0.0:
        kl = {"kl_in": "none" if ".beta" in raw else None}
    if "batch_size" in raw and ".micro_batches" not in raw:  # in how many updates hangs on the number of processes
        return {**kl, "critic": False, "epochs": None, "updates_per_step": 1}
    per_update = _count(raw, ".accumulation")
    mini_batches = max(_count(raw, ".micro_batches", per_update) // per_update, 1)
    return {**kl, "critic": False, "mini_batches": mini_batches, "updates_per_step": 1}


def _count(raw: dict[str, Any], name: str, default: int = 1) -> int:
    return int(COUNT.read(name.lstrip("."), raw.get(name, default)))


def _if_positive(raw: dict[str, Any], name: str) -> int | None:
    """A whole number, or None where it says that it is not set (verl and transformers: -1, or 0)."""
    value = int(WHOLE.read(name.lstrip("."), raw.get(name, -1)))
    return value if value > 0 else None


def _true(value: Any) -> bool:
    return str(value).lower() == "true"
