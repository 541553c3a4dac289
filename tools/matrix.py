"""Runs the tests at the ends of the range of versions that pyproject.toml allows, in an environment for each end.

    python -m tools.matrix [END ...] [options of pytest]

What the lower bounds resolve to, and what is newest, is uv's to say; it finds or fetches the Python, too. Each end is
told as a row of the table in `docs/contributing.md`.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import uv

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "matrix"
TOLD = ("torch", "transformers", "trl", "accelerate", "datasets", "numpy", "scipy")
TOOLS = ("peft", "pytest", "pytest-xdist", "tensorboard")  # no part of the range: the newest that go with it

CORE = (
    *(f"tests/test_{name}.py" for name in ("alarms", "controller", "history", "probe", "regulator", "schedules")),
    *(f"tests/test_{name}.py" for name in ("scheduler*", "signals", "statistics", "testing")),
    "tests/ppo",
)
TRAINER = (
    *(f"tests/integrations/test_huggingface{name}.py" for name in ("", "_log", "_resume", "_signals", "_trainer")),
    *(f"tests/integrations/test_{name}.py" for name in ("probing", "ppo_trainer*")),
    "tests/test_train_command.py",
)
TRL = tuple(f"tests/integrations/test_{name}.py" for name in ("contract", "huggingface_processes", "trainer_signals"))


class End(NamedTuple):
    """An end of the range.

    Attributes:
        resolution: of uv: `lowest-direct` (our own bounds, and what they ask for at its newest) or `highest`.
        besides: bounds that our dependencies forgot, for an environment that works at all.
    """

    python: str
    resolution: str
    extras: tuple[str, ...]
    tests: tuple[str, ...]
    besides: tuple[str, ...] = ()


_CORE = ("demo", "gym", "testing")
_TRAINER = (*_CORE, "ppo", "trainer")
ENDS = {
    "core": End("3.10", "lowest-direct", _CORE, CORE),
    "trainer": End("3.10", "lowest-direct", _TRAINER, TRAINER),
    # TRL itself wants Python 3.11; datasets asks for a pyarrow whose newest wants a newer numpy without saying so.
    "trl": End("3.11", "lowest-direct", (*_TRAINER, "trl"), TRL, ("pyarrow<26",)),
    "newest": End("3.13", "highest", (*_TRAINER, "trl"), (*CORE, *TRAINER, *TRL)),
}


def make(name: str, end: End) -> tuple[Path, dict[str, str]]:
    """The environment's Python, and the versions in it."""
    python, pins, also = OUT / name / "bin" / "python", OUT / f"{name}.txt", OUT / f"{name}.in"
    run = [uv.find_uv_bin()]
    # Seeded with setuptools, as by venv up to Python 3.11: the oldest torch wants it there and does not say so.
    subprocess.run([*run, "venv", "--quiet", "--clear", "--seed", "--python", end.python, OUT / name], check=True)
    also.write_text("".join(f"{bound}\n" for bound in end.besides), encoding="utf-8")
    extras = [word for extra in end.extras for word in ("--extra", extra)]
    resolve = ["pip", "compile", "--quiet", "--python", python, "--resolution", end.resolution, "--constraint", also]
    subprocess.run([*run, *resolve, *extras, "--output-file", pins, ROOT / "pyproject.toml"], check=True)
    install = [*run, "pip", "install", "--quiet", "--python", python]
    subprocess.run([*install, "--requirement", pins, *TOOLS], check=True)
    subprocess.run([*install, "--no-deps", ROOT], check=True)
    frozen = subprocess.run([*run, "pip", "freeze", "--python", python], check=True, capture_output=True, text=True)
    return python, dict(line.split("==") for line in frozen.stdout.split() if "==" in line)


def test(name: str, end: End, python: Path, options: list[str]) -> str:
    """How many passed, failed, were skipped."""
    files = sorted({str(path) for pattern in end.tests for path in ROOT.glob(pattern)})
    report = OUT / f"{name}.xml"
    report.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", "--junit-xml", report, *options, *files]
    subprocess.run(command, check=False, cwd=ROOT)
    suite = next(ElementTree.parse(report).iter("testsuite")).attrib
    failed, skipped = int(suite["failures"]) + int(suite["errors"]), int(suite["skipped"])
    return f"{int(suite['tests']) - failed - skipped} passed, {failed} failed, {skipped} skipped"


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """The ends named, and the options of pytest, whose values are no ends."""
    ends = [*itertools.takewhile(lambda word: not word.startswith("-"), words)]
    return ends, words[len(ends) :]


def main() -> None:
    """All ends, or those named; fails where a test does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ends", nargs="*", choices=[*ENDS, []], help="default: all")
    ends, options = split(sys.argv[1:])
    arguments = parser.parse_args(options[:1] if options[:1] in (["-h"], ["--help"]) else ends)
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    rows = []
    for name in arguments.ends or ENDS:
        python, versions = make(name, ENDS[name])
        counts = test(name, ENDS[name], python, options)
        told = ", ".join(f"{package} {versions[package]}" for package in TOLD if package in versions)
        rows.append(f"| {name} | {ENDS[name].python} | {told} | {counts} | {datetime.date.today()}, {commit} |")
    print("\n".join(rows))
    sys.exit(any(" 0 failed" not in row for row in rows))


if __name__ == "__main__":
    main()
