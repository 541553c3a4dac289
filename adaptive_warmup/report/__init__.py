"""What decision logs show: outcomes in numbers, in words, in the terminal, as a picture, as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaptive_warmup.history import Run
from adaptive_warmup.report.summary import COLUMNS, Outcome, in_words, outcome

__all__ = ["COLUMNS", "PICTURES", "Outcome", "in_words", "outcome", "write"]
PAGES = ("", ".html", ".htm")
PICTURES = (".png", ".pdf", ".svg")


def write(path: Path | str, runs: Sequence[Run], title: str = "adaptive-warmup") -> None:
    """Write all runs to one file: a picture where the suffix says so, else a page that opens without a network.

    Raises:
        ValueError: no run has a step; a suffix that is neither a page's nor a picture's.
    """
    runs = [run for run in runs if run.steps]
    if not runs:
        raise ValueError("the logs hold no step yet: nothing to draw.")
    path = Path(path)
    if path.suffix.lower() not in (*PAGES, *PICTURES):
        raise ValueError(f"{path} is neither a page (.html) nor a picture ({', '.join(PICTURES)}): name it as one.")
    if path.suffix.lower() in PICTURES:
        from adaptive_warmup.report import picture

        picture.save(path, runs, title)
    else:
        from adaptive_warmup.report import page

        path.write_text(page.page(runs, title), encoding="utf-8")
