"""The command line: `adaptive-warmup COMMAND`."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from adaptive_warmup import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 bad usage, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        return int(arguments.run(arguments))
    except (ValueError, ImportError, OSError) as error:
        print(f"adaptive-warmup: {error}", file=sys.stderr)
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
    _add_demo(commands)
    _add_report(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="PPO past what the run bears, under two fixed warmups and the adaptive one",
        description="Trains a small search agent with PPO at a peak learning rate past what the run bears, three times"
        " side by side: under Search-R1's warmup over 95 %% of the run, its later 28.5 %%, and the adaptive warmup."
        " Writes a decision log for each arm and report.html.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--lr", type=_positive, default=1e-2, help="peak learning rate of the policy")
    demo.add_argument("--steps", type=_count, default=150, help="RL steps of each arm")
    demo.add_argument("--seed", type=int, default=0, help="seeds sampling, mini-batches and evaluation")
    demo.add_argument("--task", default="search", help="'search', or any task of the reasoning-gym package by its name")
    demo.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for the logs and the report")
    demo.set_defaults(run=_demo)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser(
        "report",
        help="one page on one or more runs, from their decision logs",
        description="Draws decision logs (run.jsonl) as one self-contained page, also while the runs go on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    report.add_argument("logs", nargs="+", type=Path, metavar="RUN", help="a decision log, or a folder of them")
    report.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page")
    report.set_defaults(run=_report)


def _demo(arguments: argparse.Namespace) -> int:
    _needs("tqdm", "rich", "plotly")
    from adaptive_warmup.demo.main import Settings, demo

    settings = Settings(arguments.lr, arguments.steps, arguments.seed, arguments.task)
    return demo(settings, arguments.output)


def _report(arguments: argparse.Namespace) -> int:
    _needs("plotly")
    from adaptive_warmup import history, report

    paths = [log for path in arguments.logs for log in (sorted(path.rglob("*.jsonl")) if path.is_dir() else [path])]
    if not paths:
        raise ValueError(f"no decision log (*.jsonl) under {', '.join(map(str, arguments.logs))}.")
    runs = [history.read(path) for path in paths]
    for run in runs:
        if run.problem:
            print(f"adaptive-warmup: {run.problem}", file=sys.stderr)
    report.write(arguments.output, runs)
    print(arguments.output)
    return 0


def _needs(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"this needs {', '.join(missing)}: pip install 'adaptive-warmup[demo]'.")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value
