"""The code blocks of a Markdown page, run in order, as a reader would who follows it in an empty folder.

- `python` blocks share one namespace; a `text` block right after one is what it prints.
- `console` blocks hold commands after `$` and what each prints; `bash` blocks are scripts.
- A block titled "Not run in the tests: ..." (readers see the title) is only compiled; there it may be of any language.

In what is printed, `...` stands for anything, and white space counts as one blank, as in doctest.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_NOT_RUN = "Not run in the tests: "
# The command as it is installed, but of this checkout and this Python, whatever the PATH says.
_SHELL = 'adaptive-warmup() { "$PYTHON" -m adaptive_warmup "$@"; }\n'


class Block(NamedTuple):
    """A fenced block: its language, title, code, and the line in the page at which the code begins."""

    language: str
    title: str
    code: str
    line: int

    @property
    def runs(self) -> bool:
        return not self.title.startswith(_NOT_RUN)


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    fences = [token for token in MarkdownIt().parse(text) if token.type == "fence"]
    found = []
    for fence in fences:
        language, _, rest = fence.info.partition(" ")
        title = re.fullmatch(r'title="(.*)"', rest)
        assert title or not rest, f"line {fence.map[0] + 1}: {rest!r} spoils the block on the site: say title=..."
        found.append(Block(language, title[1] if title else "", fence.content, fence.map[0] + 2))
    return found


def run(text: str, name: str) -> None:
    """Run a page in the current folder; raises what its code raises, or AssertionError where it prints other things."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    out, mark = StringIO(), 0
    for block in blocks(text):
        at = f"{name}:{block.line}"
        if block.language == "python":
            program = compile("\n" * (block.line - 1) + block.code, name, "exec")
            mark = out.tell()
            with redirect_stdout(out):
                exec(program if block.runs else "", namespace)
        elif block.language == "bash":
            code, said = _shell(block.code, dry=not block.runs)
            assert code == 0, f"{at} exits with {code}:\n{said}"
        elif block.language == "console":
            _converse(block, at)
        elif block.runs:
            assert block.language == "text", f"{at}: a block of {block.language!r} is neither run nor compared"
            _compare(block.code, out.getvalue()[mark:], at)


def _converse(block: Block, at: str) -> None:
    commands = list(_commands(block.code))
    assert commands, f"{at}: no line begins with a $"
    for command, wanted in commands:
        code, got = _shell(command, dry=not block.runs)
        assert code < 2, f"{at} exits with {code}:\n{got}"  # our commands' 1 is: done, with findings
        if block.runs:
            _compare(wanted, got, at)


def _commands(code: str) -> Iterator[tuple[str, str]]:
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        command, _, wanted = re.split(r"(?<!\\)(\n)", part, maxsplit=1)  # a backslash at the end goes on
        yield command, wanted


def _shell(script: str, *, dry: bool) -> tuple[int, str]:
    """The exit code of a script and what it prints; `dry` reads its syntax and runs nothing."""
    env = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    mode = "-nc" if dry else "-ec"
    done = subprocess.run(
        ["bash", mode, _SHELL + script], env=env, check=False, timeout=120, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def _compare(wanted: str, got: str, at: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    same = doctest.OutputChecker().check_output(wanted, got, flags)
    assert same, f"{at} says:\n{wanted}\nbut this is printed:\n{got}"
