"""How an error quotes what it was given."""

from __future__ import annotations


def quoted(value: object) -> str:
    """In one line; of what takes more than that, such as a model or an optimizer, only the type."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = ""
    return text if text and len(text) <= 60 and "\n" not in text else f"{type(value).__name__}(...)"
