"""Advice for people: lines with a style each, and for programs: one JSON object."""

from __future__ import annotations

import importlib.util
import json
import textwrap
from collections.abc import Iterable

from adaptive_warmup.advice import Advice
from adaptive_warmup.advice.plan import Plan

Line = tuple[str, str]  # style (of rich), text


def lines(advice: Advice, ignored: Iterable[str] = ()) -> list[Line]:
    """The advice as lines."""
    out: list[Line] = [("bold", _line(advice)), ("", "")]
    part = ""
    for reason in advice.reasons:
        out += [("bold", reason.part)] if reason.part != part else []
        out += [("", f"  {reason.text}"), ("dim", f"    [{reason.source}]")]
        part = reason.part
    found = f"{len(advice.warnings)} warning{'' if len(advice.warnings) == 1 else 's'}"
    out += [("", ""), ("bold yellow" if advice.warnings else "bold green", found)]
    for caution in advice.warnings:
        out += [("yellow", f"{caution.setting} = {caution.value}"), ("", f"  {caution.why}")]
        out += [("", f"  do: {caution.remedy}"), ("dim", f"    [{caution.source}]")]
    ignored = list(ignored)
    return out + ([("", ""), ("dim", f"ignored: {', '.join(ignored)}")] if ignored else [])


def show(advice: Advice, ignored: Iterable[str], *, plain: bool) -> None:
    """Print the advice, with rich where it is there and wanted."""
    if plain or importlib.util.find_spec("rich") is None:
        print("\n".join(_wrapped(line) for _, line in lines(advice, ignored)))
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    for style, line in lines(advice, ignored):
        console.print(Padding(Text(line.strip(), style), (0, 0, 0, len(line) - len(line.lstrip())), expand=False))


def as_json(plan: Plan, advice: Advice, ignored: Iterable[str]) -> str:
    """One object: the numbers, reasons, warnings, the plan as it was understood, keys that were ignored."""
    content = {
        "warmup_steps": advice.warmup_steps,
        "target_kl": advice.target_kl,
        "on_gaming": advice.on_gaming,
        "reasons": [reason._asdict() for reason in advice.reasons],
        "warnings": [caution._asdict() for caution in advice.warnings],
        "plan": plan.given,
        "ignored": list(ignored),
    }
    return json.dumps(content, indent=2)


def _line(advice: Advice) -> str:
    """The line that a user adds, in the words of the host."""
    settings = {"warmup_steps": advice.warmup_steps, "target_kl": advice.target_kl, "on_gaming": advice.on_gaming}
    if advice.host == "verl":
        return " ".join(f"+adaptive_warmup.actor.{name}={value}" for name, value in settings.items())
    config = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    return f"AdaptiveWarmupCallback({config})" if advice.host else f"AdaptiveWarmup(optimizer, {config})"


def _wrapped(line: str) -> str:
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.fill(line.strip(), 100, initial_indent=indent, subsequent_indent=indent)
