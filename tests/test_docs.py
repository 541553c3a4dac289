"""Every code block of the docs and the README runs and prints what it says; the site builds, and needs no network."""

from __future__ import annotations

import importlib.util
import logging
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from benchmarks.rebuilding import same
from tests.pages import PAGES, ROOT, blocks, run

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_code_runs_and_prints_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")  # recorded runs, as in a checkout
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("adaptive_warmup"), "handlers", [])  # a page may add one
    run(page.read_text(encoding="utf-8"), str(page))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_block_hides_from_that(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(blocks(text)), "a block is indented, or not closed"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\n1 / 0\n```\n", ZeroDivisionError),
        ('```python title="Not run in the tests: slow"\n1 +\n```\n', SyntaxError),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", AssertionError),
        ("```console\n$ echo one\ntwo\n```\n", AssertionError),
        ("```console\nforgotten\n```\n", AssertionError),
        ("```console\n$ exit 2\n```\n", AssertionError),
        ("```bash\nno-such-command\n```\n", AssertionError),
        ("```bash\nfalse\n```\n", AssertionError),
        ('```bash title="Not run in the tests: slow"\nif\n```\n', AssertionError),
        ("```\nwhatever\n```\n", AssertionError),
        ('```bash skip="slow"\ntrue\n```\n', AssertionError),
    ],
)
def test_what_is_wrong_in_a_page_is_found(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        run(text, "page")


def test_blocks_share_a_namespace_and_dots_stand_for_anything() -> None:
    run("```python\nx = 3\n```\n\n```python\nprint('x is', x)\n```\n\n```text\nx ...\n```\n", "page")
    run("```console\n$ adaptive-warmup --version\nadaptive-warmup ...\n$ echo a \\\n  b\na b\n```\n", "page")


def test_plots_are_those_of_the_recorded_runs() -> None:
    spec = importlib.util.spec_from_file_location("plots", ROOT / "benchmarks" / "plots.py")
    assert spec is not None
    assert spec.loader is not None
    plots = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plots)
    for path, text in plots.rebuilt().items():
        assert same(path, text), f"{path.name} differs: run `make bench-report`"


class Page(HTMLParser):
    """What a built page loads, where it leads, and the anchors in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors.add(found.get("id", ""))
        loads = tag == "link" and found.get("rel") not in ("canonical", "next", "prev")
        if target := found.get("src") or (found.get("href") if loads else None):
            self.loads.append(target)
        elif tag == "a" and "href" in found:
            self.links.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """The pages of the site, built strictly in a copy of what it is made of."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    for name in ("docs", "adaptive_warmup"):
        shutil.copytree(ROOT / name, folder / name)
    build = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: Page(path) for path in (folder / "site").rglob("*.html")}


def test_the_site_has_every_page(site: dict[Path, Page]) -> None:
    built = {path.stem for path in site}
    assert {page.stem for page in PAGES if page.name != "README.md"} <= built


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.name != "README.md"}


def test_the_site_loads_nothing_from_elsewhere(site: dict[Path, Page]) -> None:
    assert [load for page in site.values() for load in page.loads if urlsplit(load).netloc] == []
    styles = [path.read_text(encoding="utf-8") for path in next(iter(site)).parent.rglob("*.css")]
    assert styles
    assert [url for style in styles for url in re.findall(r"url\(\W*(?:https?:)?//[^)]*", style)] == []


def test_links_and_anchors_in_the_built_site_lead_somewhere(site: dict[Path, Page]) -> None:
    dead = []
    for path, page in site.items():
        if path.name == "404.html":  # its links start at the root of a server
            continue
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = site[target].anchors if target in site else {""}
            if not target.exists() or unquote(parts.fragment) not in known | {"__top"}:
                dead.append(f"{path.name}: {link}")
    assert dead == []
