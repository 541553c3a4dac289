"""The README's claims about itself hold; `test_docs.py` runs its code."""

from __future__ import annotations

import re

from tests.pages import ROOT, blocks

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_there_are_examples_and_the_first_begins_early() -> None:
    assert [block.language for block in blocks(README)].count("python") >= 2
    assert README.splitlines().index("```python") < 30


def test_pictures_and_files_that_it_names_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
