"""What is committed is what the analyses make of the raw results."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ANALYSES = sorted((Path(__file__).parent.parent / "benchmarks" / "experiments").glob("*/analysis.py"))


@pytest.mark.parametrize("path", ANALYSES, ids=[path.parent.name for path in ANALYSES])
def test_committed_numbers_are_those_of_the_raw_runs(path: Path) -> None:
    spec = importlib.util.spec_from_file_location(f"analysis_of_{path.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    for target, text in module.rebuilt().items():
        assert target.read_text(encoding="utf-8") == text, f"{target} differs: run `make bench-report`"
