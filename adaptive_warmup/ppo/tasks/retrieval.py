"""The search engine: BM25 over titles and texts, best document only (package `bm25s`)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

from adaptive_warmup.ppo.tasks.geography import INSTALL

TITLE_WEIGHT = 4


class SearchEngine:
    """Finds the best document for a query.

    A word in the title counts `TITLE_WEIGHT` times, the simplest case of BM25F's field weights (Robertson, Zaragoza,
    Taylor, "Simple BM25 extension to multiple weighted fields", CIKM 2004): else "France" finds a French city, whose
    document is shorter.
    """

    def __init__(self, titles: Sequence[str], texts: Sequence[str]) -> None:
        """Index `texts` under `titles`.

        Raises:
            ImportError: where bm25s is not installed, with what to install.
        """
        try:
            with _without_jax():
                from bm25s import BM25
        except ImportError as error:
            raise ImportError(INSTALL) from error
        self._index = BM25()
        documents = [words(title) * (TITLE_WEIGHT - 1) + words(text) for title, text in zip(titles, texts, strict=True)]
        self._index.index(documents, show_progress=False)
        self.search = lru_cache(maxsize=65536)(self._search)

    def _search(self, query: str) -> int | None:
        """The number of the best document, or None where no document has any word of the query."""
        found = self._index.get_scores(words(query)) if words(query) else None
        return None if found is None or found.max() <= 0 else int(found.argmax())


@contextmanager
def _without_jax() -> Iterator[None]:
    """bm25s starts JAX where it is installed, and JAX takes three quarters of a GPU for a function not used here."""
    if "jax" in sys.modules:  # the user's own: it has what it wants
        yield
        return
    sys.modules["jax"] = None  # type: ignore[assignment]  # Python's word for: not to be imported
    try:
        yield
    finally:
        del sys.modules["jax"]


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"\w+", text.lower())
