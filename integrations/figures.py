"""What every host logs of a decision, under the same names."""

from __future__ import annotations

from adaptive_warmup.controller import Config, Decision

PREFIX = "adaptive_warmup/"
_PHASES = ("warmup", "holding", "backing_off", "at_ceiling", "done")


def figures(config: Config, used: Decision) -> dict[str, float]:
    """Numbers by their full names, of the decision that the step to log ran under.

    - `factor`: the lr was the schedule's lr times this; `nominal`: what it would be without signals
    - `progress`, `ceiling`: as in `Decision`, ceiling only once it is known
    - `phase`: 0 warmup, 1 holding, 2 backing_off, 3 at_ceiling, 4 done; `alarms`: how many there are
    """
    named: dict[str, float] = {
        "factor": used.factor,
        "nominal": min(1.0, (used.step + 1) / config.warmup_steps),
        "progress": used.progress,
        "phase": _PHASES.index(used.phase),
        "alarms": len(used.alarms),
    }
    named |= {} if used.ceiling is None else {"ceiling": used.ceiling}
    return {PREFIX + name: value for name, value in named.items()}
