"""How texts quote what they were given, and count."""

from __future__ import annotations


def quoted(value: object) -> str:
    """In one line; of what takes more than that, such as a model or an optimizer, only the type."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = ""
    return text if text and len(text) <= 60 and "\n" not in text else f"{type(value).__name__}(...)"


def plural(number: int, what: str) -> str:
    """1 step, 2 steps."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
