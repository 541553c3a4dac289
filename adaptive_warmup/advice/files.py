"""A plan from a file of another program: transformers' and TRL's arguments, verl's config or override lines."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptive_warmup.advice.foreign import TABLE, settings_of
from adaptive_warmup.advice.plan import Plan

_OVERRIDE = re.compile(
    r"""(?:^|\s)["']?\+{0,2}([A-Za-z_]\w*(?:\.\w+)*)=("[^"]*"|'[^']*'|\[[^\]]*\]|\S+)""", re.MULTILINE
)


@dataclass(frozen=True)
class Found:
    """What a file says: our settings by name, and the keys that have no meaning here or no value yet."""

    settings: dict[str, Any]
    ignored: tuple[str, ...]


def read_plan(path: Path | str) -> Plan:
    """The plan in a file: JSON or YAML by its ending, else `key=value` lines as in verl's launch scripts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file of no known kind, one that lacks lr or length, or a setting out of its range.
    """
    return Plan.of(read_settings(path).settings)


def read_settings(path: Path | str) -> Found:
    """The same as settings, not yet a plan: what they lack may come from elsewhere."""
    content = _flat(_parsed(Path(path)))
    said = {key: value for key, value in content.items() if value is not None and "$" not in str(value)}
    if any(key.startswith("actor_rollout_ref.") for key in said):
        kind = "verl"
    elif said.keys() & {"learning_rate", "max_steps", "per_device_train_batch_size"}:
        kind = "trainer"
    else:
        raise ValueError(
            f"{path}: no config that is known here; looked for verl's (actor_rollout_ref.*) and TrainingArguments or"
            " TRL's (learning_rate, max_steps, per_device_train_batch_size)."
        )
    unresolved = (f"{key}={value}" for key, value in content.items() if key in TABLE[kind] and "$" in str(value))
    ignored = (*unresolved, *(key for key in said if key not in TABLE[kind]))
    return Found(settings_of(kind, said), ignored)


def _parsed(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{path}: give a file of settings, in UTF-8 ({error}).") from error
    if path.suffix not in (".json", ".yaml", ".yml"):
        return _overrides(text.splitlines())
    parse, errors = _parser(path.suffix)
    try:
        content = parse(text)
    except errors as error:
        raise ValueError(f"{path}: cannot be read as {path.suffix[1:]}: {' '.join(str(error).split())}.") from error
    if isinstance(content, list):  # hydra's overrides.yaml
        content = _overrides(str(line) for line in content)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}, not settings by name.")
    return content


def _parser(suffix: str) -> tuple[Callable[[str], Any], type[Exception]]:
    if suffix == ".json":
        return json.loads, ValueError
    yaml = importlib.import_module("yaml")  # comes with transformers
    return yaml.safe_load, yaml.YAMLError


def _overrides(lines: Iterable[str]) -> dict[str, Any]:
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    return {key: _value(value.strip("\"'\\")) for key, value in _OVERRIDE.findall(text)}


def _value(text: str) -> Any:
    """An override's value: null is not said, lists are lists, all else is read by its kind."""
    if text in ("null", "None", ""):
        return None
    return [part.strip() for part in text[1:-1].split(",")] if text.startswith("[") else text


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
