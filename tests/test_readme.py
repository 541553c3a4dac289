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


def test_nobody_is_told_to_install_from_pypi_what_is_not_there_yet() -> None:
    assert "not on PyPI yet" in README
    for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")):
        assert not re.search(r"pip install\s+['\"]?adaptive-warmup", page.read_text(encoding="utf-8")), page
