"""Two processes of one run: one dies, or reports NaN."""

from __future__ import annotations

import json
import time
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

folder, what = Path(sys.argv[1]), sys.argv[2]
patience = InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=20))
accelerator = Accelerator(cpu=True, kwargs_handlers=[patience])
rank = accelerator.process_index
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
scheduler = AcceleratedWarmup(accelerator, optimizer, warmup_steps=10, target_kl=0.01)
used = []
for step in range(12):
    if what == "dies" and rank and step == 6:
        os._exit(0)
    broken = what == "nan" and rank and 4 <= step < 7
    used.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    scheduler.observe(kl=float("nan") if broken else 1e-3)
    scheduler.step()
(folder / f"{rank}.json").write_text(json.dumps(used))
"""


@fault("processes", "Accelerate", "one of two processes dies", "the other ends with an error at its next decision")
def test_a_process_dies(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"rank 0: [\s\S]*RuntimeError"):
        run_processes(_PROCESS, tmp_path, tmp_path, "dies", timeout=110)
    assert time.monotonic() - began < 110
    assert not (tmp_path / "0.json").exists()


@fault("processes", "Accelerate", "the signals of one of two processes are NaN", "lr held in both, the same in both")
def test_a_process_reports_nan(tmp_path: Path) -> None:
    run_processes(_PROCESS, tmp_path, tmp_path, "nan")
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first[4] < first[5] + 1e-12  # decided on step 3, sound
    assert first[5] == pytest.approx(first[4])
    assert first[7] == pytest.approx(first[4])
    assert first[9] > first[7]
