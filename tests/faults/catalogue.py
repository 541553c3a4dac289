"""What every test of this folder says of itself, and the page of the docs that is made of it.

`python -m tests.faults.catalogue` writes the page again.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "faults.md"
ALL = os.environ.get("FAULTS") == "all"  # as `make test-faults` sets it: the long ends in full
Test = TypeVar("Test", bound=Callable[..., Any])

AREAS = {
    "values": "Values that are not numbers, or absurd",
    "reports": "Reports that are missing, late or wrong",
    "states": "Kills and states",
    "disks": "Disks",
    "processes": "Processes",
    "length": "Length",
}

_HEAD = """# Faults and what comes of them

*Made from the suite that injects them, `tests/faults/`; do not edit it here.*

Each line is a test that injects the fault into a run and checks the outcome: the PPO loop of this package, a
`transformers.Trainer`, or a scheduler on an optimizer. `make test` runs all of them, the two longest in part (12 kills,
20,000 steps); `make test-faults` runs those in full.
"""


class Fault(NamedTuple):
    """A line of the page: in what area, injected where, what, and what comes of it."""

    area: str
    into: str
    what: str
    outcome: str


FAULTS: dict[tuple[str, str], Fault] = {}


def fault(area: str, into: str, what: str, outcome: str) -> Callable[[Test], Test]:
    """Enter a test into the catalogue."""
    FAULTS[into, what] = Fault(area, into, what, outcome)
    return lambda test: test


def page() -> str:
    """The page, of all tests in this folder."""
    for path in sorted(FOLDER.glob("test_*.py")):
        importlib.import_module(f"tests.faults.{path.stem}")
    assert {fault.area for fault in FAULTS.values()} == set(AREAS)
    lines = [_HEAD]
    for area, title in AREAS.items():
        rows = sorted(fault for fault in FAULTS.values() if fault.area == area)
        lines += [f"## {title}", "", "| fault | in | outcome |", "|---|---|---|"]
        lines += [f"| {row.what} | {row.into} | {row.outcome} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Write the page. The catalogue of the imported tests is not that of `__main__`, hence the import."""
    from tests.faults import catalogue

    PAGE.write_text(catalogue.page(), encoding="utf-8")


if __name__ == "__main__":
    main()
