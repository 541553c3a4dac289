"""What is committed is what the analyses make of the raw results."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from benchmarks.rebuilding import same

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
        assert same(target, text), f"{target} differs: run `make bench-report`"


DRAWN = '<path id="m41f" d="M 43.65 41.359783 L 7 0" style="fill: #123456"/><text>0.00003, seeds 8-15</text>\n'


@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [
        ("41.359783", "41.359782", True),
        (" 7 ", " 6.999999 ", True),
        (' 0"', ' -0.000001"', True),
        ("41.359783", "41.369783", False),
        ("41.359783", "41.359783 41.359783", False),
        ("m41f", "m42f", False),
        ("#123456", "#123457", False),
        ("0.00003", "0.00004", False),
        ("8-15", "8-16", False),
        ("seeds", "runs", False),
    ],
)
def test_a_drawing_is_the_same_but_for_its_rounding(old: str, new: str, is_same: bool, tmp_path: Path) -> None:
    picture, table = tmp_path / "picture.svg", tmp_path / "table.md"
    for path in (picture, table):
        path.write_text(DRAWN)
        assert same(path, DRAWN)
        assert not same(path, DRAWN[:-1])
    changed = DRAWN.replace(old, new)
    assert changed != DRAWN
    assert same(picture, changed) is is_same
    assert not same(table, changed)
