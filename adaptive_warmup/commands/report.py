"""`adaptive-warmup report`."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_warmup.commands.arguments import Commands, needs, told

if TYPE_CHECKING:
    from adaptive_warmup.history import Run

_WIDEST = 100  # columns of --plain that a terminal of any width gets


def add(commands: Commands) -> None:
    """Declare the command."""
    report = commands.add_parser(
        "report",
        help="one page on one or more runs, from their decision logs",
        description="Draws decision logs (*.jsonl) as one self-contained page, as a picture, or in the terminal, also"
        " while the runs go on.",
        epilog="Exit code: 0 drawn, 1 drawn without those logs that could not be read, 2 bad input.",
    )
    report.add_argument("logs", nargs="+", type=Path, metavar="RUN", help="a decision log, or a folder of them")
    report.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="an HTML page, or .png, .pdf, .svg (default: report.html)"
    )
    report.add_argument("--plain", action="store_true", help="print text; write a file only where -o names one")
    report.add_argument("--force", action="store_true", help="replace FILE if it exists")
    report.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read the logs, then draw."""
    from adaptive_warmup import report
    from adaptive_warmup.report import plain

    output = arguments.output or (None if arguments.plain else Path("report.html"))
    if output:
        needs("matplotlib" if output.suffix.lower() in report.PICTURES else "plotly")
    paths = [log for path in arguments.logs for log in (sorted(path.rglob("*.jsonl")) if path.is_dir() else [path])]
    if not paths:
        raise ValueError(f"no decision log (*.jsonl) under {', '.join(map(str, arguments.logs))}.")
    runs = list(_read(paths))
    if not runs:
        raise ValueError("nothing to draw: no log holds a step.")
    if output and output.exists() and not arguments.force:
        raise ValueError(f"{output} exists: choose another name with -o, or say --force.")
    if arguments.plain:
        print(plain.text(runs, min(shutil.get_terminal_size((80, 24)).columns, _WIDEST)), end="", flush=True)
    if output:
        report.write(output, runs)
        print(output, file=sys.stderr if arguments.plain else sys.stdout)
    return 0 if len(runs) == len(paths) else 1


def _read(paths: list[Path]) -> Iterator[Run]:
    """The runs that can be drawn; a word on stderr about each log that is broken, and about what of it is used."""
    from adaptive_warmup import history

    for path in paths:
        try:
            one = history.read(path)
        except (ValueError, OSError) as error:
            print(f"adaptive-warmup: {told(error)}", file=sys.stderr)
            continue
        if one.problem:
            print(f"adaptive-warmup: {one.problem}", file=sys.stderr)
        if not one.steps:
            print(f"adaptive-warmup: {path}, line 2: no step yet; the log is left out", file=sys.stderr)
            continue
        yield replace(one, about={"arm": path.stem, **one.about, "folder": path.resolve().parent.name})
