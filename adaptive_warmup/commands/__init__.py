"""One file for each command, with the same two verbs: `add` declares its arguments, `run` runs it.

What a command needs is imported when it runs, so that `--help` is quick.
"""

from __future__ import annotations

from adaptive_warmup.commands import advise, demo, replay, report, train, watch

COMMANDS = (advise, demo, train, replay, report, watch)
