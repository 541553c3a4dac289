"""What the analyses share. Each has a `rebuilt()`: every file that follows from its raw runs, with the text it should
have; run as a module it writes them, and `tests/test_benchmarks.py` compares by `same`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Claim = dict[str, object]
_COORDINATE = re.compile(r"((?<![\w.])-?\d+(?:\.\d+)?(?![\w.])(?=[^<>]*>))")  # a number within a tag of an SVG
_ROUNDING = 1e-4  # of a coordinate, whose last digit differs from one processor to the next


def entry(
    claim: str, target: float, value: float, interval: Sequence[float], met: bool, digits: int = 4, **count: int
) -> Claim:
    """An entry of a `summary.json`; `count` names what the value is a mean over, as `seeds=3`."""
    bounds = [round(bound, digits) for bound in interval]
    return {"claim": claim, "target": target, "value": round(value, digits), "interval": bounds, **count, "met": met}


def summary_file(claims: Sequence[Claim]) -> str:
    """The text of a `summary.json`."""
    return json.dumps(claims, indent=2) + "\n"


def markdown(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def between(text: str, begin: str, end: str, new: str) -> str:
    """`text` with what stands between two marks replaced."""
    before, rest = text.split(begin)
    return before + begin + new + end + rest.split(end, 1)[1]


@contextmanager
def drawing(salt: str) -> Iterator[None]:
    """The style of the figures, the same whatever was drawn before; `salt` makes the ids in the SVG repeat."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"svg.hashsalt": salt, "svg.fonttype": "none", "font.size": 9})
        yield


def svg(figure: Figure, **how: Any) -> str:
    """Text without date or maker, so that the same drawing gives the same bytes; `how` is for `savefig`."""
    file = StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, **how)
    return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())


def same(path: Path, text: str) -> bool:
    """Whether a file has this text; in an SVG, but for the rounding of its coordinates."""
    committed = path.read_text(encoding="utf-8")
    if path.suffix != ".svg" or committed == text:
        return committed == text
    here, there = _COORDINATE.split(committed), _COORDINATE.split(text)  # every other part is a number
    return here[::2] == there[::2] and all(
        abs(float(one) - float(other)) < _ROUNDING for one, other in zip(here[1::2], there[1::2], strict=True)
    )


def write(files: Mapping[Path, str]) -> None:
    """Write what was rebuilt, and say so."""
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
