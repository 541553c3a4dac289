"""What is shipped is what is here."""

from __future__ import annotations

import re
from pathlib import Path

import adaptive_warmup

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_package_is_listed() -> None:
    listed = re.findall(r'^  "(adaptive_warmup[\w.]*)",$', PYPROJECT, flags=re.MULTILINE)
    found = [path.parent.relative_to(ROOT) for path in (ROOT / "adaptive_warmup").rglob("__init__.py")]
    hosts = ["adaptive_warmup" / path.parent.relative_to(ROOT) for path in (ROOT / "integrations").rglob("__init__.py")]
    names = {".".join(path.parts) for path in (*found, *hosts)}
    assert sorted(listed) == sorted(names)


def test_the_link_leads_to_the_hosts() -> None:
    assert (ROOT / "adaptive_warmup" / "integrations").resolve() == ROOT / "integrations"


def test_the_version_is_said_once_the_same() -> None:
    assert f'version = "{adaptive_warmup.__version__}"' in PYPROJECT


def test_all_public_names_are_there() -> None:
    for name in adaptive_warmup.__all__:
        assert getattr(adaptive_warmup, name).__name__ == name
