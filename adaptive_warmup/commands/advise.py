"""`adaptive-warmup advise`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from adaptive_warmup.commands.arguments import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    advise = commands.add_parser(
        "advise",
        help="before a run: a nominal warmup and target KL for its settings, and what in them asks for trouble",
        description="Takes the planned settings from flags, a file, or both (flags count over the file), and says with"
        " reasons and sources which nominal warmup and target KL suit them, and which of them ask for trouble.",
        epilog="Exit code: 0 no warning, 1 warnings, 2 bad input.",
    )
    advise.add_argument(
        "file", nargs="?", type=Path,
        help="TrainingArguments or a TRL config, or verl's config (.json, .yaml); else verl's key=value lines (a launch"
        " script)",
    )  # fmt: skip
    _add_settings(advise)
    advise.add_argument(
        "--log", action="append", type=Path, default=[], metavar="RUN", help="decision log of an earlier run"
    )
    advise.add_argument("--json", action="store_true", help="print one JSON object")
    advise.add_argument("--plain", action="store_true", help="print without colours, also where rich is installed")
    advise.add_argument("-v", "--verbose", action="store_true", help="list the file's keys that were ignored")
    advise.set_defaults(run=run)


def _add_settings(advise: argparse.ArgumentParser) -> None:
    from adaptive_warmup.advice.plan import KINDS, MEANINGS, RANGE

    for name, kind in KINDS.items():
        flag = f"--{name.replace('_', '-')}"
        metavar = "{" + ",".join(kind.choices) + "}" if kind.choices else "X"
        advise.add_argument(
            flag, dest=name, help=MEANINGS[name], metavar=metavar, default=argparse.SUPPRESS,
            nargs=2 if kind is RANGE else None,
        )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Read the plan, apply the rules, print."""
    from adaptive_warmup import history
    from adaptive_warmup.advice import Plan, advise, text
    from adaptive_warmup.advice.files import Found, read_settings
    from adaptive_warmup.advice.plan import KINDS

    found = read_settings(arguments.file) if arguments.file else Found({}, ())
    flags = {name: value for name, value in vars(arguments).items() if name in KINDS}
    logs = tuple(history.read(path) for path in arguments.log)
    for log in logs:
        if log.problem:
            print(f"adaptive-warmup: {log.problem}", file=sys.stderr)
    plan = Plan.of(found.settings | flags, logs)
    advice = advise(plan)
    if arguments.json:
        print(text.as_json(plan, advice, found.ignored))
    else:
        text.show(advice, found.ignored if arguments.verbose else (), plain=arguments.plain)
    return 1 if advice.warnings else 0
