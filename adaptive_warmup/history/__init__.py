"""The decision log: one JSON line a step, complete up to the last step whatever becomes of the run.

The first line tells what the run is; line t + 1 holds the signals of update t, the lr it used, and the decision that
was taken on them. Fed through the controller again, the signals give the same decisions bit for bit. The lines:

- a start: `adaptive_warmup` (the format), `step` (the update that comes next), `versions`, `host`, `config`, `about`,
  and `state`, the controller's, where that is not the one of a new run. A run that resumes writes another one, as does
  one that finds its file changed by others; what stands before it on its step and later ones is superseded.
- a step: `step`, `lr`, `signals` (those reported), `next` (the factor decided for the next step), `phase`, `reasons`,
  and where they apply `ceiling` (left out where it is `next`, at the ceiling), `ends` (the step at which the warmup
  should finish), `alarms` (name and sentence; the name alone while it goes on), `metrics`.
- `step` and `metrics` alone: further numbers on a step that was logged.
- `continued_in`: the file, beside this one, in which the log goes on.

Floats that decisions depend on are written in full, the lr with 7 digits, the ceiling with 3, the rest with 4.
"""

from __future__ import annotations

from adaptive_warmup.history.parsing import Start, Step, items
from adaptive_warmup.history.reading import Run, follow, read, replay
from adaptive_warmup.history.writing import DecisionLog

__all__ = ["DecisionLog", "Run", "Start", "Step", "follow", "items", "read", "replay"]
