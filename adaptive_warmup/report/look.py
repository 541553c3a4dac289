"""How runs, roles and phases look, wherever they are drawn: told apart by colour, and without it."""

from __future__ import annotations

from adaptive_warmup.report.panels import Role

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: told apart by all
PHASE_COLOURS = {
    "warmup": "#56B4E9", "at_ceiling": "#CC79A7", "done": "#009E73", "holding": "#E69F00", "backing_off": "#D55E00"
}  # fmt: skip
WIDTHS: dict[Role, float] = {"value": 1.8, "nominal": 1.0, "ceiling": 1.5, "bound": 1.2}


def colour(run: int) -> str:
    """Of the run's lines and marks."""
    return COLOURS[run % len(COLOURS)]
