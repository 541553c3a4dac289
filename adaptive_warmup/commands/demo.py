"""`adaptive-warmup demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from adaptive_warmup.commands.arguments import Commands, count, needs, positive


def add(commands: Commands) -> None:
    """Declare the command."""
    demo = commands.add_parser(
        "demo",
        help="PPO past what the run bears, under two fixed warmups and the adaptive one",
        description="Trains a small search agent with PPO at a peak learning rate past what the run bears, three times"
        " side by side: under Search-R1's warmup over 95 % of the run, its later 28.5 %, and the adaptive warmup."
        " Writes a decision log for each arm and report.html.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--lr", type=positive, default=1e-2, help="peak learning rate of the policy")
    demo.add_argument("--steps", type=count, default=60, help="RL steps of each arm")
    demo.add_argument("--seed", type=int, default=0, help="seeds sampling, mini-batches and evaluation")
    demo.add_argument("--task", default="search", help="'search', or any task of the reasoning-gym package by its name")
    demo.add_argument(
        "--size", choices=("small", "tiny"), default="small", help="of the policy; tiny is made in seconds"
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("runs/demo"),
        help="folder for the logs and the report; those of an earlier demo in it are replaced",
    )
    demo.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the arms and draw them."""
    needs("tqdm", "rich", "plotly")
    from adaptive_warmup.demo.main import Settings, demo

    settings = Settings(arguments.lr, arguments.steps, arguments.seed, arguments.task, arguments.size)
    return demo(settings, arguments.output)
