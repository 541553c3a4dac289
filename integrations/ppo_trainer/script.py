"""`adaptive-warmup train`: a run of `PPOTrainer` from the command line, or from a YAML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from datasets import load_dataset
from transformers import HfArgumentParser

from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from adaptive_warmup.integrations.ppo_trainer.config import PPOConfig
from adaptive_warmup.integrations.ppo_trainer.trainer import PPOTrainer


def _says(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class RunArguments:
    """What to train, on what."""

    config: str | None = field(default=None, metadata=_says("A YAML file of options by name; flags count over it."))
    model: str | None = field(
        default=None, metadata=_says("Name or path of the policy. Left out with a task, a small one is made for it.")
    )
    data: str | None = field(
        default=None, metadata=_says("JSONL file, or name, of a dataset with the columns prompt and answer.")
    )
    eval_data: str | None = field(default=None, metadata=_says("The same, held out."))
    reward: Literal["exact", "contains"] = field(
        default="exact", metadata=_says("1 where the completion is the answer, or contains it, else 0.")
    )
    task: str | None = field(
        default=None, metadata=_says("In place of data: 'search', or any task of the reasoning-gym package.")
    )
    size: Literal["small", "tiny"] = field(default="small", metadata=_says("Of the policy made for a task."))
    problems: int = field(default=4096, metadata=_says("Training problems drawn from a task."))
    eval_problems: int = field(default=200, metadata=_says("Held-out problems drawn from a task."))
    lora_r: int = field(default=0, metadata=_says("Rank of a LoRA adapter to train; 0 trains all weights."))
    adaptive_warmup: bool = field(default=True, metadata=_says("Attach the callback, whose log is decisions.jsonl."))
    target_kl: float | None = field(default=None, metadata=_says("The callback's, nats per token and RL step."))


def main(argv: Sequence[str]) -> int:
    """Train, evaluate, save.

    Raises:
        ValueError: options that do not go together, or a file that cannot be read.
    """
    run, args = _options(argv)
    callbacks = _callbacks(run, args)  # first, since a bad setting need not wait until a policy is made
    trainer = PPOTrainer(**_what(run, args), callbacks=callbacks, args=args)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    trainer.save_model()
    trainer.save_state()
    if trainer.accelerator.is_main_process:
        print(_told(trainer))
    return 0


def _options(argv: Sequence[str]) -> tuple[RunArguments, PPOConfig]:
    parser = HfArgumentParser(
        cast(Any, (RunArguments, PPOConfig)),
        prog="adaptive-warmup train",
        usage="adaptive-warmup train [--config FILE] (--task NAME | --model NAME --data FILE) [options]",
        description="PPO with adaptive warmup. The first options are this command's, then come those of transformers'"
        " TrainingArguments, and from --value_learning_rate on those of PPO.",
    )
    for action in parser._actions:
        if action.const is False:  # a --no_..., which transformers gives the help of what it leaves out
            action.help, action.default = f"Sets {action.dest} to False.", argparse.SUPPRESS
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    path = first.parse_known_args(list(argv))[0].config
    if path:
        found = _in_file(path)
        known = {action.dest for action in parser._actions}
        if unknown := sorted(map(str, found.keys() - known)):
            raise ValueError(f"{path} has {', '.join(unknown)}, no option of `adaptive-warmup train --help`")
        choices = {action.dest: action.choices for action in parser._actions if action.choices}
        found |= {name: "no" for name, value in found.items() if value is False and "no" in choices.get(name, ())}
        for name, value in found.items():  # YAML has read a plain no as False
            if value is not None and name in choices and value not in choices[name]:
                raise ValueError(f"{path} has {name}: {value}, which is none of {', '.join(map(str, choices[name]))}")
        parser.set_defaults(**found)
    run, args, rest = parser.parse_args_into_dataclasses(
        args=list(argv), return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        raise ValueError(f"{' '.join(rest)} is no option of `adaptive-warmup train --help`")
    if (run.data is None) == (run.task is None):
        raise ValueError(f"data={run.data!r} and task={run.task!r}: give one of the two")
    if run.data is not None and run.model is None:
        raise ValueError("model=None: give the name or path of a model; only for a task one is made")
    return run, args


def _in_file(path: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {found!r}: give options by name, a line each, such as `task: search`")
    return found


def _what(run: RunArguments, args: PPOConfig) -> dict[str, Any]:
    """Model, data and reward, as PPOTrainer takes them."""
    parts: dict[str, Any] = {"model": run.model}
    if run.lora_r:
        from peft import LoraConfig

        parts["peft_config"] = LoraConfig(r=run.lora_r, lora_alpha=2 * run.lora_r, target_modules="all-linear")
    if run.task is None:
        evaluated = None if run.eval_data is None else _rows(run.eval_data)
        reward = {"exact": exact, "contains": contains}[run.reward]
        return parts | {"train_dataset": _rows(str(run.data)), "eval_dataset": evaluated, "reward_funcs": reward}
    from adaptive_warmup.ppo.tasks import make

    task = make(run.task)
    if run.model is None:
        from adaptive_warmup.ppo.reference import reference

        parts["model"], parts["processing_class"] = reference(task, run.size)
    train, held_out = task.sample(run.problems, args.seed), task.sample(run.eval_problems, args.seed, "eval")
    return parts | {"environment": task, "train_dataset": train, "eval_dataset": held_out}


def _rows(source: str) -> Any:
    if Path(source).exists():
        rows = load_dataset("json", data_files=source, split="train")
    elif source.endswith((".json", ".jsonl")):
        raise ValueError(f"there is no {source!r}: check the path")
    else:
        rows = load_dataset(source, split="train")
    if "answer" not in rows.column_names:
        raise ValueError(f"{source} has the columns {', '.join(rows.column_names)}, and no column 'answer'")
    return rows


def exact(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
    """1 where the completion, without white space around it, is the answer."""
    return [float(_text(text).strip() == str(right).strip()) for text, right in zip(completions, answer, strict=True)]


def contains(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
    """1 where the completion contains the answer."""
    return [float(str(right).strip() in _text(text)) for text, right in zip(completions, answer, strict=True)]


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def _callbacks(run: RunArguments, args: PPOConfig) -> list[Any]:
    settings: dict[str, Any] = {} if run.target_kl is None else {"target_kl": run.target_kl}
    log = Path(str(args.output_dir)) / "decisions.jsonl"
    return [AdaptiveWarmupCallback(log=log, **settings)] if run.adaptive_warmup else []


def _told(trainer: PPOTrainer) -> str:
    def ends(name: str) -> str:
        values = [logs[name] for logs in trainer.state.log_history if name in logs]
        return f"{name} {values[0]:.3f} at first, {values[-1]:.3f} at last" if values else f"{name} was never logged"

    names = ["objective/scores", *(["eval_objective/scores"] if trainer.eval_dataset is not None else [])]
    return "\n".join([*map(ends, names), f"saved in {trainer.args.output_dir}"])
