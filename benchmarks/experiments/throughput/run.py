"""Both sides in turns, each in a process of its own, one thread; keeps the seconds of every RL step.

python3 -m venv .venv-trl112 && .venv-trl112/bin/pip install trl==1.12.0 torch==2.13.0
.venv/bin/python -m benchmarks.experiments.throughput.run --trl-python .venv-trl112/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from benchmarks.rebuilding import RESULTS, ROOT

RUNS = RESULTS / "throughput" / "runs.jsonl"
EPOCHS, SIDES = (1, 4), ("trl", "ours", "ours, shared", "bare")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", type=Path, required=True, help="interpreter of the environment with TRL 1.12")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not options.trl_python.is_file():
        parser.error(f"there is no {options.trl_python}: make it as said above")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: 1 or more")
    turns = [(turn, epochs, side) for turn in range(options.rounds) for epochs in EPOCHS for side in SIDES]
    RUNS.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for turn, epochs, side in tqdm(turns, unit="run"):
        python = str(options.trl_python) if side == "trl" else sys.executable
        script = str(Path(__file__).with_name("sides.py"))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "" if side == "trl" else str(ROOT)}
        command = [python, script, side, str(epochs)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        seconds = json.loads(done.stdout.splitlines()[-1])
        row = {"round": turn, "epochs": epochs, "side": side}
        rows.append(row | {name: [round(step[i], 4) for step in seconds] for i, name in enumerate(("cpu", "wall"))})
    RUNS.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")  # what was there stays till then


if __name__ == "__main__":
    main()
