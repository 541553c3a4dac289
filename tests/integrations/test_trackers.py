"""The series `adaptive_warmup/*` arrive in TensorBoard, trackio and W&B: read back from what these wrote."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adaptive_warmup.lines import Notes
from adaptive_warmup.readers import event_files, wandb_run
from tests.integrations.trainers import STEPS

ROOT = Path(__file__).parent.parent.parent
TRACKERS = [name for name in ("tensorboard", "trackio", "wandb") if importlib.util.find_spec(name)]

_RUN = """
import json, sys
from pathlib import Path
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from tests.integrations.trainers import FLAT, Record, Plant, PEAK, step_logs, trainer

folder = Path(sys.argv[1])
warmup = AdaptiveWarmupCallback(4)
record = Record(warmup)
plant = Plant(record, warmup, bears=0.6 * PEAK, wiggle=0.3)
made = trainer(folder, [record, plant, warmup], report_to=sys.argv[2:], run_name="run", **FLAT)
made.train()
(folder / "logs.json").write_text(json.dumps(step_logs(made.state.log_history)))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one run that reports to all of them, in a process of its own, as they like it."""
    out = tmp_path_factory.mktemp("trackers")
    local = {"TENSORBOARD_LOGGING_DIR": out / "events", "TRACKIO_DIR": out / "trackio", "WANDB_DIR": out}
    still = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1"}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **{name: str(path) for name, path in local.items()}, **still, "PYTHONPATH": paths}
    command = [sys.executable, "-c", _RUN, str(out), *TRACKERS]
    done = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


def in_tensorboard(folder: Path) -> Iterator[dict[str, Any]]:
    yield from (dict(row.values) for row in event_files.rows(folder / "events", Notes()))


def in_trackio(folder: Path) -> Iterator[dict[str, Any]]:
    (file,) = (folder / "trackio").glob("*.db")
    with closing(sqlite3.connect(file)) as base:
        yield from (json.loads(text) for (text,) in base.execute("select metrics from metrics order by step"))


def in_wandb(folder: Path) -> Iterator[dict[str, Any]]:
    (run,) = (folder / "wandb").glob("offline-run-*")
    yield from (dict(row.values) for row in wandb_run.rows(run, Notes()))


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
def test_the_series_are_there(folder: Path, tracker: str) -> None:
    if tracker not in TRACKERS:
        pytest.skip(f"{tracker} is not installed")
    rows = list({"tensorboard": in_tensorboard, "trackio": in_trackio, "wandb": in_wandb}[tracker](folder))
    logs = json.loads((folder / "logs.json").read_text())
    for name in ("factor", "nominal", "progress", "phase", "alarms", "ceiling"):
        shown = [row[f"train/adaptive_warmup/{name}"] for row in rows if f"train/adaptive_warmup/{name}" in row]
        told = [entry[f"adaptive_warmup/{name}"] for entry in logs if f"adaptive_warmup/{name}" in entry]
        assert shown == pytest.approx(told)  # TensorBoard keeps 32 bits
        assert len(shown) >= STEPS - 1  # no ceiling is known at the first step
    assert len({entry["adaptive_warmup/factor"] for entry in logs}) > 4  # decisions, and no flat line
