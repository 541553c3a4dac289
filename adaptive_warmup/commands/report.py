"""`adaptive-warmup report`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from adaptive_warmup.commands.arguments import Commands, needs


def add(commands: Commands) -> None:
    """Declare the command."""
    report = commands.add_parser(
        "report",
        help="one page on one or more runs, from their decision logs",
        description="Draws decision logs (*.jsonl) as one self-contained page, also while the runs go on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    report.add_argument("logs", nargs="+", type=Path, metavar="RUN", help="a decision log, or a folder of them")
    report.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page")
    report.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read the logs and write the page."""
    needs("plotly")
    from adaptive_warmup import history, report

    paths = [log for path in arguments.logs for log in (sorted(path.rglob("*.jsonl")) if path.is_dir() else [path])]
    if not paths:
        raise ValueError(f"no decision log (*.jsonl) under {', '.join(map(str, arguments.logs))}.")
    runs = [history.read(path) for path in paths]
    for one in runs:
        if one.problem:
            print(f"adaptive-warmup: {one.problem}", file=sys.stderr)
    report.write(arguments.output, runs)
    print(arguments.output)
    return 0
