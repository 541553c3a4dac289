"""Keys of other programs that cannot serve, and why: the other half of `keys.py`."""

from __future__ import annotations

import re

_REFERENCE = "not the size of a policy step: not used for the ceiling"
_CONTAINS = "the KL is in it: no task reward"
_CRITIC = "of the value model; the warmup replayed is the policy's"

# Keys that look as if they could serve, and why they do not.
UNFIT: tuple[tuple[str, str], ...] = (
    (
        "kl",
        "a KL against the reference (k3 in TRL's GRPO, k1 in RLOO; in KTO of mismatched pairs, a sum over a sequence),"
        f" {_REFERENCE}; if yours is, say --map 'KEY=kl'",
    ),
    ("actor/kl_loss", f"k3 against the reference, {_REFERENCE}; it hides the sign"),
    ("objective/kl", f"k1 against the reference, a sum over a sequence, {_REFERENCE}; per token it needs a length"),
    ("objective/rlhf_reward", _CONTAINS),
    ("critic/rewards/mean", f"{_CONTAINS}; less critic/score/mean it gives the KL reward"),
    ("ppo/mean_non_score_reward", "a mean over tokens; a KL reward is the sum over a sequence"),
    ("objective/entropy", "minus the log-probabilities summed over a sequence: no entropy per token"),
    ("(critic/(lr|grad_norm|vf_loss).*)|value_lr|value/grad_norm|loss/value_avg|value_loss", _CRITIC),
    ("rewards/(chosen|rejected|margins|accuracies)", "of the data, or of the loss: no score of what the policy does"),
    ("(frac_reward_zero_std|reward_std|rewards/.*/std)", "of how rewards spread: no mean"),
    ("rewards/.*", "a part of the reward; the whole is `reward`"),
)
_TELLING = re.compile(r"kl|reward|score|(^|[/_])lr|learning_rate|grad|return", re.IGNORECASE)


def unfit(name: str) -> str | None:
    """Why a key cannot serve, if it looks as if it could."""
    short = re.sub(r"^(.* - )?(train/)?", "", name)
    if short.startswith(("eval_", "eval/")):  # of an evaluation, no step's
        return None
    for pattern, why in UNFIT:
        if re.fullmatch(pattern, short):
            return why.replace("KEY", name)
    return f"unknown; if it is a signal, say --map '{name}=SIGNAL'" if _TELLING.search(name) else None
