"""What every host logs of a decision."""

from __future__ import annotations

from adaptive_warmup import Config
from adaptive_warmup.alarms import Alarm
from adaptive_warmup.controller import Decision
from adaptive_warmup.integrations.figures import figures


def test_a_decision_as_numbers() -> None:
    alarms = (Alarm("score_drop", "it dropped"), Alarm("kl_gaming", "it pays"))
    assert figures(Config(10), Decision(4, 0.3, 0.6, "holding", ceiling=0.4, alarms=alarms)) == {
        "adaptive_warmup/factor": 0.3,
        "adaptive_warmup/nominal": 0.5,
        "adaptive_warmup/progress": 0.6,
        "adaptive_warmup/phase": 1,
        "adaptive_warmup/alarms": 2,
        "adaptive_warmup/ceiling": 0.4,
    }


def test_before_a_kl_has_said_there_is_no_ceiling() -> None:
    told = figures(Config(3), Decision(4, 1.0, 1.0, "done"))
    assert (told["adaptive_warmup/nominal"], told["adaptive_warmup/phase"]) == (1.0, 4)
    assert "adaptive_warmup/ceiling" not in told
