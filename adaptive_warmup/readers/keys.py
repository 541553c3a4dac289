"""What other programs' keys are: one table, with units, estimators, signs, and what cannot serve.

It serves twice: on logs of the past, where nobody says which program wrote them, and within a running trainer of TRL,
whose class is known (`of_trainer`), so that a key of many meanings, such as `kl`, serves as well.

A key stands here under its plain name: `train/` of the Trainer's reporters, and the run's name that W&B puts before
the keys of a chart it exports, are taken off where the name is not known with them. Sources are named by host; the
estimators k1, k2, k3 are those of `adaptive_warmup.signals`. To read another program's logs, add its keys here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from adaptive_warmup.signals import KL_SOURCES, NAMES, KLSource, check_name, check_source, is_source


class Key(NamedTuple):
    """A key that serves.

    Attributes:
        name: the plain key.
        signal: of `Signals`, or `lr`.
        what: unit, estimator and reduction.
        host: who logs it.
        scale: times this it has our unit and sign.
        source: how the KL was measured.
        ahead: what is logged at a step is used in the next one, unless the log begins at 0: no run comes back to that.
        trainers: the classes of transformers, TRL 1.16 and ours that report it so while they run.
    """

    name: str
    signal: str
    what: str
    host: str
    scale: float = 1.0
    source: KLSource = "post_update"
    ahead: bool = False
    trainers: tuple[str, ...] = ()


class Derived(NamedTuple):
    """A signal that two keys give: `first - second`, or `first / second`."""

    signal: str
    first: str
    sign: str
    second: str
    what: str
    host: str


class Formula(NamedTuple):
    """A signal that a trainer does not report, but that follows from what it does.

    Attributes:
        signal: of `Signals`.
        names: the keys that it follows from.
        text: how, for people.
        apply: how, given the trainer's `beta` and the values of the keys.
        what: unit, estimator and reduction.
        trainers: the classes of TRL 1.16 that it is right for.
    """

    signal: str
    names: tuple[str, ...]
    text: str
    apply: Callable[..., Any]
    what: str
    trainers: tuple[str, ...]


_PER_TOKEN = "nats per response token"
_SUM = "mean over sequences of the sum over a sequence, signed, in units of reward"
_SCORE = "mean score, without the KL"
_IN_LOOP = f"{_PER_TOKEN}, read in the loop before each mini-batch's update"
_PRE_CLIP = "L2, before clipping"
_WHOLE_FROM_FOUR = "with less than four epochs it reads too low: --map 'approx_kl=kl:in_loop'"
_ROLLING = "mean return of the last 100 episodes: an early score drop of a rolling mean may be none"
_VERL, _OLD_VERL, _SEARCH_R1 = "verl", "verl of 2024", "Search-R1"
_TRL, _PPO, _OLDEST = "TRL", "TRL's PPO", "TRL's PPO before 0.12"
SB3, _OURS, _TRAINER = "Stable-Baselines3", "adaptive_warmup.ppo", "transformers"
_OWN, OWN_KL = "adaptive-warmup", "signals/kl:"  # a decision log's
AHEAD = "logged one step ahead"
FACTOR = "factor"  # the warmup's own: no signal, but a column that a decision log has
_GRPO, _RLOO, _ASYNC, _ONLINE = "GRPOTrainer", "RLOOTrainer", "AsyncGRPOTrainer", "OnlineDPOTrainer"
_WITH_ENTROPY = ("SFTTrainer", "DPOTrainer", "KTOTrainer", _GRPO, _RLOO, _ASYNC)
_ANY = ("Trainer",)
_PPO_TRAINER = ("PPOTrainer",)

# Of several keys for one signal, the first that the run has is taken.
KEYS: tuple[Key, ...] = (
    *(Key(f"{OWN_KL}{source}", "kl", _PER_TOKEN, _OWN, source=source) for source in KL_SOURCES),
    *(Key(f"signals/{name}", name, "as in the log", _OWN) for name in (*NAMES, "lr") if name != "kl"),
    Key(f"signals/{FACTOR}", FACTOR, "of the warmup, as it was", _OWN),
    Key(f"adaptive_warmup/{FACTOR}", FACTOR, "of the warmup, as it was, in a host's log", _OWN),
    Key("policy/kl", "kl", f"k3 after the step's last update, {_PER_TOKEN}", _OURS, trainers=_PPO_TRAINER),
    Key("actor/ppo_kl", "kl", f"k1, {_IN_LOOP}", _VERL, source="in_loop"),
    Key("policy/approxkl_avg", "kl", f"k2, {_IN_LOOP}", _PPO, source="in_loop"),
    Key("ppo/policy/approxkl", "kl", f"k2, {_IN_LOOP}", _OLDEST, source="in_loop"),
    Key("approx_kl", "kl", f"k3, nats per action, of the last epoch; {_WHOLE_FROM_FOUR}", SB3),
    Key(
        "policy/reference_kl",
        "reference_kl",
        f"k1 against the reference, {_PER_TOKEN}, signed",
        _OURS,
        trainers=_PPO_TRAINER,
    ),
    Key("actor/reward_kl_penalty", "reference_kl", f"k1 against the reference, {_PER_TOKEN}, signed", _VERL),
    Key("critic/kl", "reference_kl", f"k1 against the reference, {_PER_TOKEN}, signed", _SEARCH_R1),
    Key("critic/score/mean", "task_reward", _SCORE, _VERL),
    Key("objective/scores", "task_reward", _SCORE, _PPO, trainers=(_ONLINE, "PPOTrainer")),
    Key("ppo/mean_scores", "task_reward", _SCORE, _OLDEST),
    Key("reward", "task_reward", _SCORE, "TRL's GRPO and RLOO", trainers=(_GRPO, _RLOO)),
    Key("rollout/ep_rew_mean", "task_reward", _ROLLING, SB3),
    Key("objective/non_score_reward", "kl_reward", _SUM, _PPO, trainers=_PPO_TRAINER),
    Key("actor/grad_norm", "grad_norm", _PRE_CLIP, _VERL),
    Key("policy/grad_norm", "grad_norm", _PRE_CLIP, _OURS),
    Key("grad_norm", "grad_norm", _PRE_CLIP, _TRAINER, trainers=_ANY),
    Key("actor/lr", "lr", f"of the policy, {AHEAD}", _VERL, ahead=True),
    Key("actor/lr(1e-4)", "lr", f"of the policy, in units of 1e-4, {AHEAD}", _OLD_VERL, 1e-4, ahead=True),
    Key("learning_rate", "lr", "that the step used", _TRAINER),
    Key("ppo/learning_rate", "lr", "that the step used", _OLDEST),
    Key("lr", "lr", "that the step used", _PPO),
    Key("actor/pg_loss", "loss", "policy loss", _VERL),
    Key("loss/policy_avg", "loss", "policy loss", _PPO),
    Key("ppo/loss/policy", "loss", "policy loss", _OLDEST),
    Key("loss", "loss", "that was minimised", _TRAINER, trainers=_ANY),
    Key("actor/pg_clipfrac", "clip_fraction", "share of response tokens", _VERL),
    Key("policy/clipfrac_avg", "clip_fraction", "share of response tokens", _PPO, trainers=_PPO_TRAINER),
    Key("ppo/policy/clipfrac", "clip_fraction", "share of response tokens", _OLDEST),
    Key("clip_ratio/region_mean", "clip_fraction", "share of response tokens", _TRL, trainers=(_GRPO, _ASYNC)),
    Key("clip_ratio", "clip_fraction", "share of response tokens", _TRL),
    Key("clip_fraction", "clip_fraction", "share of actions", SB3),
    Key("actor/entropy", "entropy", _PER_TOKEN, _VERL),
    Key("actor/entropy_loss", "entropy", _PER_TOKEN, _VERL),
    Key("policy/entropy_avg", "entropy", _PER_TOKEN, _PPO, trainers=_PPO_TRAINER),
    Key("entropy", "entropy", _PER_TOKEN, _TRL, trainers=_WITH_ENTROPY),
    Key("entropy_loss", "entropy", "minus the entropy, nats per action", SB3, -1.0),
    Key("critic/vf_explained_var", "explained_variance", "of the returns", _VERL),
    Key("value/explained_variance", "explained_variance", "of the returns", _OURS, trainers=_PPO_TRAINER),
    Key("explained_variance", "explained_variance", "of the returns", SB3),
    *(Key(name, name, "as in adaptive_warmup.signals", "you") for name in ("task_reward", "kl_reward", "update_norm")),
)

DERIVED: tuple[Derived, ...] = (
    Derived("kl_reward", "critic/rewards/mean", "-", "critic/score/mean", _SUM, _VERL),
    Derived("reference_kl", "objective/kl", "/", "tokens/responses_len_mean", f"k1, {_PER_TOKEN}, signed", _OLDEST),
    Derived("reference_kl", "objective/kl", "/", "completions/mean_length", f"k1, {_PER_TOKEN}, signed", _TRL),
)

# Of the critic, which has a controller of its own while verl runs; a replay is of the policy's.
VERL_CRITIC: tuple[Key, ...] = (
    Key("critic/grad_norm", "grad_norm", _PRE_CLIP, _VERL),
    Key("critic/vf_loss", "loss", "value loss", _VERL),
)

# Keys that mean this in these trainers, and in a log nobody knows what.
IN_A_TRAINER: tuple[Key, ...] = (
    Key("kl", "reference_kl", f"k3 against the reference (beta not 0), {_PER_TOKEN}, no sign", _TRL, trainers=(_GRPO,)),
    Key("kl", "reference_kl", f"k1 against the reference (beta not 0), {_PER_TOKEN}, signed", _TRL, trainers=(_RLOO,)),
    Key("kl", "kl", f"k3 from the policy that sampled, {_IN_LOOP}", _TRL, source="in_loop", trainers=(_ASYNC,)),
    Key("clip_ratio/region_mean", "clip_fraction", "share of sequences", _TRL, trainers=(_RLOO,)),
)
FORMULAS: tuple[Formula, ...] = (
    Formula(
        "kl_reward",
        ("kl", "completions/mean_length"),
        "-beta * kl * completions/mean_length",
        lambda beta, kl, length: -beta * kl * length,
        f"{_SUM}, k1",
        (_RLOO,),
    ),
    # Not its objective/non_score_reward: that one counts the padding after a response's end too.
    Formula(
        "kl_reward",
        ("rewards/chosen", "rewards/rejected"),
        "-(rewards/chosen + rewards/rejected) / 2",
        lambda beta, chosen, rejected: -(chosen + rejected) / 2,
        f"{_SUM}, k1",
        (_ONLINE,),
    ),
)

_PREFIXES = (re.compile(r"^train/"), re.compile(r"^.* - (train/)?"))


def table(mapping: Mapping[str, str]) -> dict[str, Key]:
    """The keys by plain name, those of the user's `--map key=signal` first.

    Raises:
        TypeError: a signal that we do not know, with the nearest that we do.
        ValueError: a kl_source that we do not know.
    """
    mine = {key: mapped(key, signal) for key, signal in mapping.items()}
    return mine | {key.name: key for key in KEYS if key.name not in mine}


def counted(name: str) -> Key | None:
    """The key of a KL in our log whose source says how many updates it was taken over, such as `in_loop:4x2`."""
    source = name.removeprefix(OWN_KL)
    return Key(name, "kl", _PER_TOKEN, _OWN, source=source) if source != name and is_source(source) else None


def needed() -> frozenset[str]:
    """The keys that serve only together with others."""
    return frozenset(name for one in DERIVED for name in (one.first, one.second))


def plain(name: str, known: Mapping[str, object]) -> str:
    """The name that the table knows it by, or itself."""
    names = [name, *(prefix.sub("", name, count=1) for prefix in _PREFIXES)]
    return next((short for short in names if short in known), names[-1] if names[-1] in needed() else name)


def of_trainer(classes: set[str]) -> tuple[tuple[Key, ...], tuple[Formula, ...]]:
    """What a trainer reports while it runs, and what follows from it, by the names of its class and bases."""
    rows = tuple(key for key in (*KEYS, *IN_A_TRAINER) if classes.intersection(key.trainers))
    return rows, tuple(one for one in FORMULAS if classes.intersection(one.trainers))


def of_verl() -> tuple[tuple[Key, ...], tuple[Derived, ...]]:
    """What verl, or Search-R1's verl, says of the policy while it runs."""
    rows = tuple(key for key in KEYS if key.host in (_VERL, _SEARCH_R1) and key.signal != "lr")
    return rows, tuple(one for one in DERIVED if one.host == _VERL)


def mapped(key: str, signal: str) -> Key:
    """A key of the user's.

    Raises:
        TypeError, ValueError: as `table`.
    """
    name, _, source = signal.partition(":")
    if name != "lr":
        check_name(name)
    if source:
        check_source(source)
    return Key(key, name, "as you say", "--map", source=source or "post_update")
