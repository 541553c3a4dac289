"""`Regulator`: what comes in as a signal, what is kept, and what goes into a checkpoint."""

from __future__ import annotations

import copy
import json
import logging
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptive_warmup import Config, Regulator, Signals
from tests.optimizers import lively, streams

pytestmark = pytest.mark.filterwarnings("error")


def seen(regulator: Regulator) -> Signals:
    """What the next decision is taken on."""
    regulator.decide()
    assert regulator.signals is not None
    return regulator.signals


@pytest.mark.parametrize(
    "value",
    [
        0.25,
        np.float64(0.25),
        np.float32(0.25),
        np.array(0.25),
        np.array([[0.25]]),
        Decimal("0.25"),
        torch.tensor(0.25),
        torch.tensor([0.25]),
        torch.tensor([[0.25]], dtype=torch.bfloat16),
        torch.tensor(0.25, requires_grad=True),
        torch.tensor([0.25], requires_grad=True) * 1.0,
    ],
)
def test_a_signal_may_be_any_single_number(value: Any) -> None:
    regulator = Regulator(Config(10))
    regulator.observe(kl=value, kl_reward=value)
    signals = seen(regulator)
    assert (signals.kl, signals.kl_reward) == (0.25, 0.25)
    assert type(signals.kl) is float


def test_what_a_host_supplies_does_not_replace_what_was_observed() -> None:
    regulator = Regulator(Config(10))
    regulator.observe(kl=0.5, kl_source="probe")
    regulator.supply(kl=0.1, kl_source="in_loop", entropy=2.0)
    signals = seen(regulator)
    assert (signals.kl, signals.kl_source, signals.entropy) == (0.5, "probe", 2.0)
    regulator.supply(kl=0.1, kl_source="in_loop")
    signals = seen(regulator)
    assert (signals.kl, signals.kl_source, signals.entropy) == (0.1, "in_loop", None)


@pytest.mark.parametrize("value", [1, np.int64(1), torch.tensor(1), True])
def test_whole_numbers_are_numbers(value: Any) -> None:
    regulator = Regulator(Config(10))
    regulator.observe(task_reward=value)
    assert seen(regulator).task_reward == 1.0


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(math.inf)])
def test_a_value_that_is_not_finite_is_taken_in_and_reported(broken: Any) -> None:
    regulator = Regulator(Config(10))
    regulator.observe(kl=broken)
    decision = regulator.decide()
    assert [alarm.name for alarm in decision.alarms] == ["non_finite"]
    assert decision.factor == 0.1  # no rise


def test_none_is_no_report() -> None:
    regulator = Regulator(Config(10))
    regulator.observe(kl=0.5, grad_norm=None)
    regulator.observe(kl=None, kl_source=None)
    assert seen(regulator) == Signals(kl=0.5)


def test_of_two_reports_the_last_counts_and_all_are_gone_after_the_decision() -> None:
    regulator = Regulator(Config(10))
    regulator.observe(kl=0.5, loss=1.0)
    regulator.observe(kl=0.25)
    assert seen(regulator) == Signals(kl=0.25, loss=1.0)
    assert seen(regulator) == Signals()


def test_a_source_belongs_to_the_kl_that_it_came_with() -> None:
    regulator = Regulator(Config(10))
    regulator.observe(kl=0.5, kl_source="in_loop")
    regulator.observe(loss=1.0)
    assert seen(regulator).kl_source == "in_loop"
    regulator.observe(kl=0.5, kl_source="in_loop")
    regulator.observe(kl=0.05)
    assert seen(regulator).kl_source == "post_update"


@pytest.mark.parametrize(
    ("signals", "error", "says"),
    [
        ({"kl": "0.1"}, TypeError, r"signal 'kl' is '0\.1': report a number"),
        ({"kl": b"1"}, TypeError, r"signal 'kl' is b'1'"),
        ({"loss": [0.1]}, TypeError, r"signal 'loss' is \[0\.1\]"),
        ({"loss": 1j}, TypeError, r"signal 'loss' is 1j"),
        ({"loss": torch.tensor(1j)}, TypeError, r"signal 'loss' is tensor\(0\.\+1\.j\)"),
        ({"loss": 10**400}, TypeError, "signal 'loss' is 1000"),
        ({"loss": {}}, TypeError, r"signal 'loss' is \{\}"),
        ({"kl": torch.zeros(3)}, ValueError, r"signal 'kl' has shape \(3,\): report one number, such as its mean"),
        ({"kl": np.zeros((2, 1))}, ValueError, r"signal 'kl' has shape \(2, 1\)"),
        ({"kl": torch.zeros(0)}, ValueError, r"signal 'kl' has shape \(0,\)"),
        ({"kl": torch.zeros(2, device="meta")}, ValueError, r"signal 'kl' has shape \(2,\)"),
        ({"grad_nrom": 1.0}, TypeError, "unknown signal 'grad_nrom'. Did you mean grad_norm"),
        ({"approx_kl": 1.0}, TypeError, "Did you mean kl, with kl_source='in_loop'"),
        ({"score": 1.0}, TypeError, "Did you mean task_reward"),
        ({"xyzzy": 1.0}, TypeError, "unknown signal 'xyzzy'. Known signals: kl, "),
        ({"lr_scale": 1.0}, TypeError, "unknown signal 'lr_scale'"),
        ({"kl_source": "k3"}, ValueError, "kl_source='k3' is unknown: use one of post_update, probe"),
    ],
)
def test_what_is_no_signal_is_refused_and_nothing_of_it_is_taken_in(
    signals: dict[str, Any], error: type[Exception], says: str
) -> None:
    regulator = Regulator(Config(10))
    with pytest.raises(error, match=says):
        regulator.observe(**{"entropy": 1.0, **signals})
    assert seen(regulator) == Signals()


# Cuts


def test_the_kl_of_a_step_with_a_cut_update_is_no_measurement() -> None:
    regulator = Regulator(Config(10))
    for _ in range(10):
        regulator.observe(grad_norm=1.0)
        regulator.decide()
    assert [regulator.cut(norm) for norm in (1.0, 0.0)] == [1.0, 1.0]
    regulator.observe(kl=0.5)
    assert seen(regulator).kl == 0.5
    cuts = [regulator.cut(norm) for norm in (1.0, 10.0, math.nan)]
    assert cuts == [1.0, pytest.approx(0.1), 1e-3]
    regulator.observe(kl=0.5, task_reward=0.3)
    signals = seen(regulator)
    assert (signals.kl, signals.task_reward) == (None, 0.3)
    regulator.observe(kl=0.5)
    assert seen(regulator).kl == 0.5


@given(st.floats(), streams, st.sampled_from(["feedback", "linear"]))
def test_a_cut_is_a_positive_share(norm: float, stream: list[dict[str, Any]], law: str) -> None:
    regulator = Regulator(Config(10, law=law))
    for signals in stream:
        regulator.observe(**signals)
        regulator.decide()
    assert 0.0 < regulator.cut(norm) <= 1.0


# Restart, alarms


def test_restart_forgets_everything_and_may_begin_later() -> None:
    regulator = Regulator(Config(10))
    fresh = json.dumps(regulator.state_dict())
    for signals in lively(8):
        regulator.observe(**signals)
        regulator.decide()
    regulator.observe(kl=3.0)
    regulator.cut(math.nan)
    regulator.restart()
    assert json.dumps(regulator.state_dict()) == fresh
    regulator.restart(at=4)
    assert (regulator.decision.step, regulator.decision.factor) == (4, 0.5)


def test_an_alarm_is_logged_when_it_begins_and_not_while_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    regulator = Regulator(Config(10))
    for kl in (math.nan, math.nan, 0.001, math.nan):
        regulator.observe(kl=kl)
        regulator.decide()
    assert [record.message.split(":")[0] for record in caplog.records] == ["step 1, non_finite", "step 4, non_finite"]


# State


@given(streams, streams)
def test_by_way_of_json_it_goes_on_exactly(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    whole = Regulator(Config(10))
    for signals in before:
        whole.observe(**signals)
        whole.decide()
    whole.observe(**after[0])
    rest = Regulator(Config(10))
    rest.load_state_dict(json.loads(json.dumps(whole.state_dict(), sort_keys=True)))
    assert rest.decision == whole.decision
    for signals in after:
        for regulator in (whole, rest):
            regulator.observe(**signals)
            regulator.decide()
        assert rest.decision == whole.decision
        assert rest.state == whole.state


def test_after_loading_the_signals_of_the_latest_decision_are_not_known() -> None:
    saved, here = Regulator(Config(10)), Regulator(Config(10))
    here.observe(kl=0.5)
    here.decide()
    here.load_state_dict(saved.state_dict())
    assert here.signals is None
    assert here.decision == saved.decision


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 1}, "reads states of version 2, found 1"),
        ({"version": None}, "found None"),
        ({"checksum": 12}, r"damaged \(checksum 12 does not fit its content\): resume from another checkpoint"),
        ({"waiting": {"kl": 0.6}}, "damaged"),
        ({"cuts": [0.5]}, "damaged"),
        ({"more": 1}, "damaged"),
    ],
)
def test_a_bad_state_is_refused_and_nothing_is_changed(change: dict[str, Any], says: str) -> None:
    regulator = Regulator(Config(10))
    regulator.observe(kl=0.5)
    before = copy.deepcopy(regulator.state_dict())
    with pytest.raises(ValueError, match=says):
        regulator.load_state_dict({**before, **change})
    assert regulator.state_dict() == before


def test_other_settings_are_kept_and_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    regulator = Regulator(Config(20))
    regulator.load_state_dict(Regulator(Config(20)).state_dict())
    assert not caplog.records
    regulator.load_state_dict(Regulator(Config(10)).state_dict())
    assert regulator.config == Config(20)
    assert "saved with {'warmup_steps': 10" in caplog.text
