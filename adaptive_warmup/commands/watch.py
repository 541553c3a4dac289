"""`adaptive-warmup watch`."""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from adaptive_warmup.commands.arguments import Commands, needs, positive


def add(commands: Commands) -> None:
    """Declare the command."""
    watch = commands.add_parser(
        "watch",
        help="follow a run in the terminal",
        description="Follows a decision log while its run writes it: phase, lr, signals, the last decisions and why."
        " Ctrl-C leaves; the run is not touched.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    watch.add_argument("log", type=Path, metavar="RUN", help="a decision log (*.jsonl)")
    watch.add_argument("--every", type=positive, default=1.0, metavar="SECONDS", help="how often to look")
    watch.add_argument("--once", action="store_true", help="show it as it is now, and leave")
    watch.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show the log, again and again."""
    needs("rich")
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.text import Text

    from adaptive_warmup import history
    from adaptive_warmup.watch import view

    if arguments.log.is_dir():
        found = next(iter(sorted(arguments.log.rglob("*.jsonl"))), arguments.log / "run.jsonl")
        raise ValueError(f"{arguments.log} is a folder: name a decision log, such as {found}.")

    def wait() -> bool:
        time.sleep(0.0 if arguments.once else arguments.every)
        return not arguments.once

    console = Console()
    moves = console.is_terminal and not console.is_dumb_terminal  # else one view below the other
    plain = not console.encoding.startswith("utf")
    shown: RenderableType = "no step yet"
    states = history.follow(arguments.log, wait)
    live = Live(shown, console=console, auto_refresh=False)
    with live if moves else nullcontext():
        if not moves and not arguments.once:
            console.print(shown)
        for state in states:
            odd = [Text(state.problem, "dim")] if state.problem else []
            named = replace(state, about={"arm": arguments.log.stem, **state.about})
            shown = Group(view(named, console.width, plain) if state.steps else "no step yet", *odd)
            if moves:
                live.update(shown, refresh=True)
            elif not arguments.once:
                console.print(shown)
    if arguments.once and not moves:
        console.print(shown)
    return 0
