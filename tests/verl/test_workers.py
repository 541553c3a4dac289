"""Two workers of verl, its own engine, optimizer and schedule (a warmup of 4 steps): what lr moved their weights."""

from __future__ import annotations

import json
from typing import Any

import pytest
from environment import HERE
from processes import run_processes
from runs import PEAK, RAMP, make_model

WORKER = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_path(sys.path[0] + "/worker.py", run_name="__main__")
"""
FACTORS = [0.25, 0.5, 1.0, 0.125]


@pytest.fixture(scope="module", params=(0, 1))
def said(request: pytest.FixtureRequest, results: list[dict[str, Any]]) -> dict[str, Any]:
    """What one of the ranks says."""
    return results[request.param]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("workers")
    run_processes(WORKER, folder, HERE, make_model(folder / "model"), folder, timeout=600)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def of(said: list[dict[str, float]], name: str) -> Any:
    return pytest.approx([step[name] for step in said], rel=2e-3, abs=1e-9)


def test_without_a_factor_the_engine_is_verls(said: dict[str, Any]) -> None:
    ramp = [PEAK * step / RAMP for step in range(4)]
    assert ramp[:3] == of(said["plain"], "used"), "0 in the first step"
    assert ramp[1:] == of(said["plain"], "next")
    assert [step["scheduled"] for step in said["plain"]] == [None] * 3


def test_with_one_each_worker_uses_the_peak_times_it(said: dict[str, Any]) -> None:
    """Also where verl's own warmup is not over, as in the first of these steps, its fourth."""
    assert [PEAK * factor for factor in FACTORS] == of(said["warmed"], "used")
    assert [step["scheduled"] for step in said["warmed"]] == [PEAK] * 4
    assert [step["next"] for step in said["warmed"]] == [PEAK] * 4


def test_what_verl_saves_is_its_own_schedule(said: dict[str, Any]) -> None:
    assert [step["held"] for step in said["warmed"]] == [PEAK] * 4, "between the updates its own lr is there"


def test_it_resumes_to_the_bit(said: dict[str, Any]) -> None:
    assert said["resumed"] == said["warmed"]
