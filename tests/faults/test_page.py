"""The docs' page of faults is what the suite injects."""

from __future__ import annotations

from tests.faults.catalogue import PAGE, page


def test_the_page_is_the_suite() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "run `python -m tests.faults.catalogue`"
