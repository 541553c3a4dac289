"""The table of keys as a page of the docs: `python -m adaptive_warmup.readers.keys_page` writes it again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from adaptive_warmup.readers.keys import DERIVED, FORMULAS, IN_A_TRAINER, KEYS, Key
from adaptive_warmup.readers.unfit import UNFIT

PAGE = Path("docs/signals-of-trainers.md")
_TRAINERS = ("Trainer", "SFTTrainer", "RewardTrainer", "DPOTrainer", "KTOTrainer", "RLOOTrainer", "GRPOTrainer")
_OURS = "PPOTrainer"
_EXPERIMENTAL = ("OnlineDPOTrainer", "AsyncGRPOTrainer")

_HEAD = """# Signals of the trainers

*Made from the one table that knows these keys, `adaptive_warmup/readers/keys.py`; do not edit it here.*

`AdaptiveWarmupCallback` finds out which trainer it is in and reads what that trainer reports, at every optimizer step:
from where the trainer gathers its numbers before it logs their means, so `logging_steps` does not matter, and nothing
is computed or waited for that the trainer has not. A value of several micro-batches is their mean. Evaluations are left
out. What you `observe` yourself goes first. `callback.sources` says what each signal was read from.

A class derived from one of these counts as that one. A trainer that is not in the table works with its loss and its
gradient norm. Add keys of your own by name or pattern: `AdaptiveWarmupCallback(signals={"my/kl": "kl:in_loop",
"score/*": "task_reward"})`. They are looked for in the same places, and in the training logs; a log's value is a mean
over `logging_steps` and counts for the step after it.

**No trainer of TRL but AsyncGRPO reports how far a step moved the policy;**
[our `PPOTrainer`](integrations/ppo_trainer.md) does. What GRPO and RLOO call `kl` is the
distance to the reference. So there the callback's probe measures it
([where the KL comes from](integrations/huggingface.md#where-the-kl-comes-from)); with `probe=None` the controller is a
brake (task reward, gradient norm) and no regulator. Where GRPO or RLOO use each rollout for several updates
(`num_iterations`, `steps_per_generation`), the share of clipped ratios is a rough KL that costs nothing:
`AdaptiveWarmupCallback(probe=None, signals={"clip_ratio/region_mean": "kl:clip_fraction"})`.

## While a trainer runs

transformers 5, TRL 1.16, and our `PPOTrainer`, whose values are of an RL step. Estimators are those of `Signals`.
"""


def page() -> str:
    """The page."""
    return "\n".join(
        [
            _HEAD,
            *_table(("trainer", "key", "signal", "unit, estimator, sign"), _running()),
            "",
            "## In logs of the past",
            "",
            "What `adaptive-warmup replay` reads. Of several keys for one signal the first that the run has is taken.",
            "",
            *_table(("host", "key", "signal", "unit, estimator, sign"), _past()),
            "",
            "## What looks as if it could serve",
            "",
            *_table(("key", "why it is not taken"), ((_code(name), _cell(why)) for name, why in UNFIT)),
            "",
        ]
    )


def _running() -> Iterable[Sequence[str]]:
    for trainer in (*_TRAINERS, *_EXPERIMENTAL, _OURS):
        label = f"{trainer} (experimental)" if trainer in _EXPERIMENTAL else trainer
        label = {"Trainer": "every Trainer", _OURS: f"{_OURS} (ours)"}.get(trainer, label)
        rows = [(_code(key.name), _signal(key), _cell(key.what)) for key in _of(trainer)]
        rows += [
            (f"{_code(one.text)}, **derived**", _code(one.signal), _cell(one.what))
            for one in FORMULAS
            if trainer in one.trainers
        ]
        yield from ((label, *row) for row in rows or [("none of its own", "", "")])


def _past() -> Iterable[Sequence[str]]:
    for key in KEYS:
        scaled = f"{key.what}; times {key.scale:g}" if key.scale != 1.0 else key.what
        yield key.host, _code(key.name), _signal(key), _cell(scaled)
    for one in DERIVED:
        yield one.host, f"{_code(f'{one.first} {one.sign} {one.second}')}, **derived**", _code(one.signal), one.what


def _of(trainer: str) -> list[Key]:
    return [key for key in (*KEYS, *IN_A_TRAINER) if trainer in key.trainers]


def _signal(key: Key) -> str:
    return _code(f"kl:{key.source}" if key.signal == "kl" and key.source != "post_update" else key.signal)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    return f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
