"""`Regulator`: what comes in as a signal, what is kept, and what goes into a checkpoint."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from adaptive_warmup import Config, Regulator, Signals
from adaptive_warmup.sealing import sealed
from tests.optimizers import lively, streams

try:
    from torch.distributed.tensor import DTensor, Partial, Replicate
except ImportError:  # torch 2.4
    from torch.distributed._tensor import DTensor, Partial, Replicate  # type: ignore[no-redef]

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


def test_a_source_without_a_kl_is_of_none() -> None:
    regulator = Regulator(Config(10))
    regulator.observe(kl=None, kl_source="probe")
    regulator.supply(kl=0.5, kl_source="in_loop")
    assert seen(regulator) == Signals(kl=0.5, kl_source="in_loop")
    regulator.observe(kl=0.5, kl_source="in_loop")
    regulator.observe(kl_source="probe", loss=1.0)
    assert seen(regulator) == Signals(kl=0.5, kl_source="in_loop", loss=1.0)


@pytest.mark.parametrize(
    ("signals", "error", "says"),
    [
        ({"kl": "0.1"}, TypeError, r"signal 'kl' is '0\.1': report a number"),
        ({"kl": b"1"}, TypeError, r"signal 'kl' is b'1'"),
        ({"loss": [0.1]}, TypeError, r"signal 'loss' is \[0\.1\]"),
        ({"loss": 1j}, TypeError, r"signal 'loss' is 1j"),
        ({"loss": torch.tensor(1j)}, TypeError, r"signal 'loss' is tensor\(0\.\+1\.j\)"),
        ({"loss": 10**400}, TypeError, r"signal 'loss' is int\(\.\.\.\): report a number"),
        ({"loss": {}}, TypeError, r"signal 'loss' is \{\}"),
        ({"kl": torch.nn.Sequential(torch.nn.Flatten())}, TypeError, r"^signal 'kl' is Sequential\(\.\.\.\): report"),
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


@pytest.fixture
def process_group() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("default")  # torch's own
def test_of_a_number_in_parts_on_several_processes_the_whole_is_asked_for() -> None:
    """As FSDP2 may give the gradient norm: read as it is, each process would see its own part of it."""
    mesh, regulator = init_device_mesh("cpu", (1,)), Regulator(Config(10))
    parts = DTensor.from_local(torch.tensor(3.0), mesh, [Partial()])
    with pytest.raises(ValueError, match=r"'grad_norm' is in parts on .*Partial.*: report its full_tensor\(\)"):
        regulator.observe(grad_norm=parts)
    regulator.observe(grad_norm=parts.full_tensor(), loss=DTensor.from_local(torch.tensor(2.0), mesh, [Replicate()]))
    assert seen(regulator) == Signals(grad_norm=3.0, loss=2.0)


# Late KLs: of which step


def told(*kls: tuple[float, int | None], steps: int = 10, config: Config | None = None) -> Regulator:
    """After so many steps without a word, one step for each KL, with `of_step`."""
    regulator = Regulator(config or Config(100))
    for _ in range(steps):
        regulator.decide()
    for kl, of_step in kls:
        regulator.observe(kl=kl, of_step=of_step)
        regulator.decide()
    return regulator


def test_a_late_kl_counts_at_the_lr_of_its_step() -> None:
    """Of step 3, at factor .04: 4 times the target there is on target at .02. Without a date it would be at .055."""
    assert told((0.04, 3)).decision.ceiling == pytest.approx(0.02)
    assert told((0.04, None)).decision.ceiling == pytest.approx(0.055)
    assert told((0.04, 10)).decision == told((0.04, None)).decision
    assert "kl 0.04 of an earlier step is 4 x the target" in told((0.04, 3)).decision.reasons[0]


def test_the_lr_rises_to_a_rise_above_what_a_late_kl_has_shown_to_be_borne() -> None:
    """From 1 / 100 in three steps at least: tenfold a step. Of step 0 (.01), .1 is shown, and .11 reached already."""
    assert told((1e-9, None)).decision.factor == pytest.approx(1.0)
    first, second = told((1e-9, 0)), told((1e-9, 0), (1e-9, 3))
    assert (first.decision.factor, first.decision.phase) == (pytest.approx(0.11), "warmup")
    assert second.decision.factor == pytest.approx(0.4)
    assert told((1e-9, 0), (1e-9, 10)).decision.factor == pytest.approx(1.0)  # never more than a rise


def test_the_schedule_counts_in_the_lr_of_a_late_kl() -> None:
    regulator = Regulator(Config(1, min_target_kl=0.01))
    for scale in (0.5, 1.0):
        regulator.decide(scale)
    regulator.observe(kl=0.01, of_step=0)
    regulator.decide()
    assert regulator.signals == Signals(kl=0.01, kl_lr=0.5)
    assert regulator.decision.ceiling == pytest.approx(0.5)


def test_of_each_step_one_kl_counts(caplog: pytest.LogCaptureFixture) -> None:
    regulator = told((0.04, 3))
    for of_step in (3, -1, 10 - 64):
        regulator.observe(kl=9.0, of_step=of_step, entropy=2.0)
        assert seen(regulator) == Signals(entropy=2.0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the KL of step 3, come in step 11, is left out" in caplog.text


def test_of_a_step_that_says_nothing_no_late_kl_counts() -> None:
    regulator = Regulator(Config(10))
    for lr_scale in (0.0, 1.0, 1.0):
        regulator.decide(lr_scale)
    regulator.observe(grad_norm=1.0)
    regulator.cut(math.nan)
    regulator.decide()
    for of_step, counts in ((0, False), (1, True), (3, False)):
        regulator.observe(kl=0.5, of_step=of_step)
        assert (seen(regulator).kl == 0.5) is counts


@pytest.mark.parametrize("of_step", [None, 10])
def test_a_kl_of_the_running_step_comes_in_place_of_a_late_one(of_step: int | None) -> None:
    regulator = told()
    regulator.observe(kl=0.5, of_step=4)
    regulator.observe(kl=0.25, of_step=of_step)
    assert seen(regulator) == Signals(kl=0.25)


@pytest.mark.parametrize(("running", "counts"), [(64, True), (65, False)])
def test_a_kl_may_come_64_steps_late(running: int, counts: bool) -> None:
    regulator = Regulator(Config(10))
    for _ in range(running):
        regulator.decide()
    regulator.observe(kl=0.5, of_step=0)
    assert (seen(regulator).kl == 0.5) is counts


@pytest.mark.parametrize(
    ("of_step", "error", "says"),
    [
        (11, ValueError, "of_step=11 is still to come: the running step is 10"),
        (1.5, TypeError, r"of_step=1\.5 must be a whole number, as `decision.step` is"),
        ("3", TypeError, "of_step='3'"),
    ],
)
def test_a_step_that_is_none_is_refused(of_step: Any, error: type[Exception], says: str) -> None:
    regulator = told()
    with pytest.raises(error, match=says):
        regulator.observe(kl=0.5, entropy=1.0, of_step=of_step)
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


def norms_of_one(config: Config) -> Regulator:
    regulator = Regulator(config)
    for _ in range(10):
        regulator.observe(grad_norm=1.0)
        regulator.decide()
    return regulator


def test_from_where_on_a_norm_is_an_outlier_and_what_it_is_cut_to() -> None:
    """Of norms of 1, whose logs count as .1 apart at least, it is four of these out: e^.4 is 1.49."""
    regulator = norms_of_one(Config(100))
    assert [regulator.cut(norm) for norm in (1.48, 1.5)] == [1.0, pytest.approx(1 / 1.5)]


def test_nothing_is_cut_once_it_is_handed_over() -> None:
    guarded, over = norms_of_one(Config(1)), norms_of_one(Config(1, guard=False))
    assert (guarded.cut(100.0), over.cut(100.0)) == (pytest.approx(0.01), 1.0)
    assert guarded.limits is not None
    assert over.limits is None


@given(st.floats(), streams, st.sampled_from(["feedback", "linear"]))
def test_a_cut_is_a_positive_share(norm: float, stream: list[dict[str, Any]], law: str) -> None:
    regulator = Regulator(Config(10, law=law))
    for signals in stream:
        regulator.observe(**signals)
        regulator.decide()
    assert 0.0 < regulator.cut(norm) <= 1.0


# Restart, alarms


def test_a_step_of_many_updates_keeps_its_kl_where_few_were_cut() -> None:
    """Of 32 updates one cut to a fifth leaves .975 of the lr in the mean; of two it leaves .6."""

    def known(updates: int) -> bool:
        regulator = Regulator(Config(10))
        for i in range(20):
            regulator.observe(grad_norm=1.0 + 0.01 * (i % 3))
            regulator.decide()
        cuts = [regulator.cut(norm) for norm in [1.0] * (updates - 1) + [5.0]]
        assert cuts[-1] == pytest.approx(0.2, rel=0.02)
        regulator.observe(kl=0.001, grad_norm=1.0)
        return seen(regulator).kl is not None

    assert known(32)
    assert not known(2)


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


@pytest.mark.parametrize("kl", [0.0, -0.02])
def test_kls_that_never_measure_are_told_of_once(kl: float, caplog: pytest.LogCaptureFixture) -> None:
    regulator = Regulator(Config(10))
    for _ in range(20):
        assert not caplog.messages or regulator.decision.step >= 8
        regulator.observe(kl=kl)
        regulator.decide()
    (message,) = caplog.messages
    assert message.startswith(f"the KL was reported 8 times, and never above zero (now {kl:.3g}): so there is no ceil")
    assert regulator.decision.factor == 1.0


@pytest.mark.parametrize(
    "steps",
    [
        [{"kl": 1e-6}, *[{"kl": 0.0}] * 20],  # one has measured
        [{"kl": 0.0, "kl_source": "clip_fraction"}] * 20,  # where nothing is clipped, as it should be
        [{"kl": math.nan}] * 20,
        [{}] * 20,
    ],
)
def test_of_other_kls_that_is_not_said(steps: list[dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    regulator, frozen, blind = Regulator(Config(10)), Regulator(Config(10)), Regulator(Config(10, law="linear"))
    for signals in steps:
        regulator.observe(**signals)
        regulator.decide()
        frozen.observe(kl=0.0)
        frozen.decide(lr_scale=0.0)
        blind.observe(kl=0.0)
        blind.decide()
    assert "never above zero" not in caplog.text


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


late_kls = st.lists(st.tuples(st.floats(1e-5, 1.0), st.integers(0, 7) | st.none()), min_size=1, max_size=25)


@given(late_kls, st.integers(0))
def test_it_goes_on_exactly_with_late_kls(stream: list[tuple[float, int | None]], cut: int) -> None:
    whole, parts = Regulator(Config(30)), Regulator(Config(30))
    for step, (kl, late) in enumerate(stream):
        for regulator in (whole, parts):
            regulator.observe(kl=kl, of_step=None if late is None else step - late)
        if step == cut % len(stream):
            saved, parts = parts.state_dict(), Regulator(Config(30))
            parts.load_state_dict(json.loads(json.dumps(saved)))
        assert whole.decide() == parts.decide()
    assert whole.state_dict() == parts.state_dict()


def test_a_state_of_before_there_were_late_kls_is_read() -> None:
    old = {name: part for name, part in told((0.04, 3)).state_dict().items() if name not in ("version", "checksum")}
    del old["lrs"]
    regulator = Regulator(Config(100))
    regulator.load_state_dict(sealed(old))
    assert regulator.decision == told((0.04, 3)).decision
    regulator.observe(kl=0.5, of_step=9)
    assert seen(regulator) == Signals()


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
        ({"version": 1}, "reads states of version 4, found 1"),
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


@pytest.mark.parametrize(("before", "after"), [(10, 100), (10, 20), (100, 25)])
def test_resumed_with_another_warmup_the_factor_goes_on_from_where_it_is(before: int, after: int) -> None:
    """The clock of the nominal ramp counts along another one then, and would take the lr back, or ahead."""
    saved = Regulator(Config(before))
    for _ in range(40):
        saved.decide()
    regulator = Regulator(Config(after))
    regulator.load_state_dict(saved.state_dict())
    factors = [saved.decision.factor, *(regulator.decide().factor for _ in range(3))]
    steps = [later - earlier for earlier, later in pairwise(factors)]
    assert all(0.0 <= step <= 1.0 / after + 1e-9 for step in steps)
