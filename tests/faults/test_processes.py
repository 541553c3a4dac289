"""Two processes of one run: one reports NaN, and later dies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.catalogue import fault
from tests.processes import run_processes

_PROCESS = """
import datetime, json, os, sys
from pathlib import Path
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from adaptive_warmup.integrations.accelerate import AcceleratedWarmup

folder = Path(sys.argv[1])
patience = InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=60))
accelerator = Accelerator(cpu=True, kwargs_handlers=[patience])
rank = accelerator.process_index
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
scheduler = AcceleratedWarmup(accelerator, optimizer, warmup_steps=40, target_kl=0.01)
used = []
for step in range(12):
    used.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    scheduler.observe(kl=float("nan") if rank and 4 <= step < 7 else 1e-3)
    scheduler.step()
(folder / f"{rank}.json").write_text(json.dumps(used))
if rank:
    os._exit(0)
try:
    for step in range(3):
        optimizer.step()
        scheduler.observe(kl=1e-3)
        scheduler.step()
except RuntimeError as error:
    (folder / "error.txt").write_text(str(error))
os._exit(0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two wrote; `run_processes` fails where one of them hangs."""
    found = tmp_path_factory.mktemp("processes")
    run_processes(_PROCESS, found, found, timeout=240)
    return found


@fault("processes", "Accelerate", "the signals of one of two processes are NaN", "lr held in both, the same in both")
def test_a_process_reports_nan(folder: Path) -> None:
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first[3] < first[4]
    assert first[5:8] == pytest.approx([first[4]] * 3)
    assert first[9] > first[7]


@fault("processes", "Accelerate", "one of two processes dies", "the other ends with an error at its next decision")
def test_a_process_dies(folder: Path) -> None:
    assert (folder / "error.txt").read_text()
