"""`adaptive-warmup train`."""

from __future__ import annotations

import argparse

from adaptive_warmup.commands.arguments import Commands, needs


def add(commands: Commands) -> None:
    """Declare the command; its options are those of a Trainer, which are heavy to import."""
    train = commands.add_parser(
        "train", help="PPO on prompts and answers, or on a task with turns, under adaptive warmup", add_help=False
    )
    train.set_defaults(run=run, rest=[])


def run(arguments: argparse.Namespace) -> int:
    """Read the options, then train."""
    needs("accelerate", "datasets", extra="ppo")
    from adaptive_warmup.integrations.ppo_trainer.script import main

    return main(arguments.rest)
