"""What the commands share: the parser's types, and a word about packages and files that are not there."""

from __future__ import annotations

import argparse
import importlib.util
from typing import TypeAlias

from adaptive_warmup.lines import number

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def needs(*packages: str, extra: str = "demo") -> None:
    """Raise ImportError with what to install if any of the optional packages is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"this needs {', '.join(missing)}: pip install 'adaptive-warmup[{extra}]'.")


def positive(text: str) -> float:
    """A number above zero."""
    value = number(text)
    if value is None or not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a positive number, such as 1e-6")
    return value


def count(text: str) -> int:
    """A whole number, 1 or more."""
    value = number(text)
    if value is None or not value.is_integer() or value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, 1 or more")
    return int(value)


def told(error: BaseException) -> str:
    """An error in words, and what to do where the system's own say only that a file is not there."""
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"there is no {str(error.filename)!r}: check the path"
    if isinstance(error, IsADirectoryError) and error.filename:
        return f"{str(error.filename)!r} is a folder: name a file in it"
    return str(error)
