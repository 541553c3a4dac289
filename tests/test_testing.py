"""The contracts that others can run: our laws and hosts keep to them, and what does not is caught."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings

from adaptive_warmup import AdaptiveWarmup
from adaptive_warmup.laws import LAWS, Law, Move, feedback, linear
from adaptive_warmup.testing import PROPERTIES, HostContract, check_law
from tests.optimizers import lrs_of, optimizer_of


@pytest.mark.parametrize("law", sorted(LAWS))
@pytest.mark.parametrize("name", PROPERTIES)
def test_our_laws(name: str, law: str) -> None:
    PROPERTIES[name](law)


def hasty(*known: Any) -> Move:
    """Twice as fast as nominal."""
    move = linear(*known)
    return move._replace(factor=min(2 * move.factor, 1.0), clock=None)


def upside_down(config: Any, state: Any, signals: Any, *rest: Any) -> Move:
    """Takes a high KL for a good sign."""
    kl = signals.kl
    return feedback(config, state, signals._replace(kl=1e-4 / kl if kl and 0 < kl < 1e9 else kl), *rest)


def hoarding(config: Any, state: Any, signals: Any, *rest: Any) -> Move:
    """Remembers every step."""
    return linear(config, state, signals, *rest)._replace(memory={**state.law, f"kl {state.step}": signals.kl})


def forgetful(config: Any, state: Any, *rest: Any) -> Move:
    """Goes by something that is in no state."""
    forgetful.calls = getattr(forgetful, "calls", 0) + 1  # type: ignore[attr-defined]
    move = linear(config, state, *rest)
    return move._replace(reasons=(f"call {forgetful.calls}",))  # type: ignore[attr-defined]


@pytest.fixture
def unshrunk() -> Iterator[None]:
    """That a law fails is enough, and the least example of it dear."""
    settings.register_profile("unshrunk", settings.get_profile("default"), phases=[Phase.generate])
    settings.load_profile("unshrunk")
    yield
    settings.load_profile("default")


@pytest.mark.usefixtures("unshrunk")
@pytest.mark.parametrize("law", [hasty, upside_down, hoarding, forgetful])
def test_a_law_that_breaks_the_contract_is_caught(law: Law) -> None:
    known = dict(LAWS)
    with pytest.raises(AssertionError):
        check_law(law)
    assert known == LAWS


def test_a_law_of_ones_own_that_keeps_to_it_passes() -> None:
    def half(config: Any, *rest: Any) -> Move:
        return feedback(replace(config, target_kl=0.5 * config.target_kl), *rest)

    check_law(half)


class TestScheduler(HostContract):
    """`AdaptiveWarmup` in a plain loop."""

    def lrs(
        self, settings: dict[str, Any], kls: Sequence[float | None], resume_after: int | None = None
    ) -> list[float]:
        scheduler, used = AdaptiveWarmup(optimizer_of(self.peak), **settings), []
        for step, kl in enumerate(kls):
            if step == resume_after:
                scheduler = self.resumed(scheduler, settings)
            used += lrs_of(scheduler.optimizer)
            scheduler.optimizer.step()
            scheduler.observe(kl=kl)
            self.step(scheduler)
        return used

    def resumed(self, scheduler: AdaptiveWarmup, settings: dict[str, Any]) -> AdaptiveWarmup:
        file = io.BytesIO()
        torch.save(scheduler.state_dict(), file)
        file.seek(0)
        new = AdaptiveWarmup(optimizer_of(self.peak), **settings)
        new.load_state_dict(torch.load(file, weights_only=True))
        return new

    def step(self, scheduler: AdaptiveWarmup) -> None:
        scheduler.step()


class Careless(TestScheduler):
    """Decides twice an update, and saves nothing."""

    __test__ = False

    def resumed(self, scheduler: AdaptiveWarmup, settings: dict[str, Any]) -> AdaptiveWarmup:
        return AdaptiveWarmup(optimizer_of(self.peak), **settings)

    def step(self, scheduler: AdaptiveWarmup) -> None:
        scheduler.step()
        scheduler.step()


@pytest.mark.parametrize("name", [name for name in dir(HostContract) if name.startswith("test_")])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_host_that_breaks_the_contract_is_caught(name: str) -> None:
    with pytest.raises(AssertionError, match="lr"):
        getattr(Careless(), name)()


def test_a_host_is_checked_without_hypothesis_and_a_law_says_what_it_needs() -> None:
    code = """
import sys
sys.modules["hypothesis"] = None
from adaptive_warmup.testing import HostContract
try:
    from adaptive_warmup.testing import check_law
except ImportError as error:
    assert "adaptive-warmup[testing]" in str(error)
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
