"""States for a checkpoint: with a version and a checksum, so that nobody resumes from what is damaged."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from adaptive_warmup.controller import VERSION


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with a version and a checksum, for a checkpoint."""
    return {"version": VERSION, "checksum": _checksum(content), **content}


def opened(saved: Any) -> dict[str, Any]:
    """The content of what `sealed` gave, also by way of JSON; ValueError if of another version, or damaged."""
    found = saved.get("version") if isinstance(saved, Mapping) else saved
    if not isinstance(saved, Mapping) or found != VERSION:
        raise ValueError(
            f"this adaptive_warmup reads states of version {VERSION}, found {found!r}:"
            " resume with what saved it (another scheduler? another version?), or start without this state."
        )
    content = {key: value for key, value in saved.items() if key not in ("version", "checksum")}
    try:
        fits = _checksum(content) == saved.get("checksum")
    except (TypeError, ValueError):  # keys, or circles, that no state of ours has
        fits = False
    if not fits:
        raise ValueError(
            f"the adaptive_warmup state is damaged (checksum {saved.get('checksum')!r} does not fit its content):"
            " resume from another checkpoint."
        )
    return content


def _checksum(content: Mapping[str, Any]) -> int:
    # Of what is not plain (a wrapped schedule may keep such) only the type counts: its text may hold an address.
    return zlib.crc32(json.dumps(content, sort_keys=True, default=lambda value: type(value).__name__).encode())
