"""The command line: `adaptive-warmup COMMAND`. Each command is a file in `commands/`."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence

from adaptive_warmup import __version__
from adaptive_warmup.commands import COMMANDS
from adaptive_warmup.commands.arguments import told


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 done with findings, 2 bad usage or input, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a name that the terminal's encoding lacks is no reason to stop
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if hasattr(arguments, "rest"):  # a command whose options are declared where they are heavy to import
        arguments.rest = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    logging.getLogger("adaptive_warmup").addHandler(logging.StreamHandler())  # ours only: others' words are theirs
    try:
        return int(arguments.run(arguments))
    except BrokenPipeError:  # as under `| head`, which has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, ImportError, OSError) as error:
        print(f"adaptive-warmup: {told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("adaptive-warmup: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adaptive-warmup",
        description="Learning-rate warmup that listens to the run: as fast as it can bear, and it says why.",
    )
    parser.add_argument("--version", action="version", version=f"adaptive-warmup {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
