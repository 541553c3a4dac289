"""The demo as a user runs it, on a tiny policy: to its end, and interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from adaptive_warmup.history import read, replay

STARTED: list[int] = []
ARMS = ("ratio-0.95", "ratio-0.285", "adaptive")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def start(cache: Path, output: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "adaptive_warmup", "demo", "--size", "tiny", "--output", str(output), *arguments]
    environment = os.environ | {"ADAPTIVE_WARMUP_CACHE": str(cache), "COLUMNS": "120"}
    demo = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # else a background shell's
    )  # fmt: skip
    STARTED.append(demo.pid)
    return demo


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """A test that fails leaves no arm of its demo running."""
    yield
    while STARTED:
        with suppress(ProcessLookupError):
            os.killpg(STARTED.pop(), signal.SIGKILL)


def test_to_its_end(cache: Path, tmp_path: Path) -> None:
    demo = start(cache, tmp_path, "--steps", "3", "--lr", "0.01", "--seed", "1")
    said, _ = demo.communicate(timeout=400)
    assert demo.returncode == 0, said
    for arm in ARMS:
        run = read(tmp_path / f"{arm}.jsonl")
        assert len(run.steps) == 3
        assert 0.0 <= run.metric("evaluation")[-1] <= 1.0
        assert [d.factor for d in replay(run)] == [step["next"] for step in run.steps]
        assert run.about["lr"] == 0.01
        assert arm.replace("-", " ") in said
    assert "final score" in said
    assert (tmp_path / "report.html").stat().st_size > 100_000


def test_interrupted_it_reports_what_was_done_and_leaves_nobody_behind(cache: Path, tmp_path: Path) -> None:
    demo = start(cache, tmp_path, "--steps", "10000")
    deadline = time.monotonic() + 400
    while not all(lines(tmp_path / f"{arm}.jsonl") > 2 for arm in ARMS):
        assert time.monotonic() < deadline
        assert demo.poll() is None
        time.sleep(0.2)
    os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
    said, _ = demo.communicate(timeout=120)
    assert demo.returncode == 130, said
    assert "interrupted: the report shows what was done" in said
    assert (tmp_path / "report.html").exists()
    while group_exists(demo.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_unknown_task_is_refused_with_the_nearest_one(cache: Path, tmp_path: Path) -> None:
    demo = start(cache, tmp_path, "--task", "number_sortin")
    said, _ = demo.communicate(timeout=100)
    assert demo.returncode == 2
    assert "number_sorting" in said


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0
