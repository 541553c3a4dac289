"""The properties that hold whatever the law, by hypothesis."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from adaptive_warmup import controller
from adaptive_warmup.controller import Config, Decision, State
from adaptive_warmup.laws import LAWS, Law
from adaptive_warmup.signals import KL_SOURCES, Signals

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("checking a law needs hypothesis: pip install 'adaptive-warmup[testing]'") from error

_anything = st.none() | st.floats(allow_nan=True, allow_infinity=True)
_positive = st.floats(1e-9, 1e3)
_ordinary = st.floats(-1e3, 1e3)
_any_signals = st.builds(
    Signals,
    kl=_anything,
    kl_source=st.sampled_from([*KL_SOURCES, "in_loop:4x2", "post_update:4x8"]),
    reference_kl=_anything,
    task_reward=_anything,
    kl_reward=_anything,
    grad_norm=_anything,
    loss=_anything,
    lr_scale=st.floats(0.0, 2.0) | _anything.filter(lambda x: x is not None),
    kl_lr=st.none() | st.floats(0.0, 2.0) | _anything,
)
_healthy_signals = st.builds(
    Signals,
    kl=st.none() | _positive,
    kl_source=st.just("post_update"),
    task_reward=st.none() | _ordinary,
    kl_reward=st.none() | _ordinary,
    grad_norm=st.none() | _positive,
)


def _given(*strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`given`, for as long as it takes: a busy machine breaks no law."""
    return lambda check: settings(deadline=None)(given(*strategies)(check))


def _configs(law: str) -> st.SearchStrategy[Config]:
    return st.builds(Config, warmup_steps=st.integers(1, 300), law=st.just(law), guard=st.booleans())


def decide(config: Config, stream: list[Signals]) -> list[Decision]:
    """The decisions on a stream of signals, from the start."""
    state, decisions = controller.start(config), []
    for signals in stream:
        state, decision = controller.step(config, state, signals)
        decisions.append(decision)
    return decisions


def _same(these: list[Decision], those: list[Decision]) -> None:
    """But for rounding."""
    for one, other in zip(these, those, strict=True):
        assert math.isclose(one.factor, other.factor, rel_tol=1e-9), (one, other)
        assert one.phase == other.phase, (one, other)


def nominal_without_signals(law: str) -> None:
    """Without signals it is the nominal linear warmup, exactly."""

    @_given(_configs(law), st.integers(0, 400))
    def check(config: Config, steps: int) -> None:
        factors = [controller.start(config).factor, *(d.factor for d in decide(config, [Signals()] * steps))]
        assert factors == [min(1.0, (t + 1) / config.warmup_steps) for t in range(steps + 1)]

    check()


def in_bounds_on_any_signals(law: str) -> None:
    """The factor stays in its bounds, progress never falls, and every decision has a reason, whatever is reported."""

    @_given(_configs(law), st.lists(_any_signals, max_size=40))
    def check(config: Config, stream: list[Signals]) -> None:
        progress = 0.0
        for number, decision in enumerate(decide(config, stream), start=1):
            assert config.floor <= decision.factor <= 1.0
            assert decision.factor > 0.0
            assert decision.step == number
            assert progress <= decision.progress <= 1.0
            assert decision.reasons
            assert decision.ceiling is None or decision.ceiling > 0.0
            assert decision.expected_end is None or decision.expected_end >= 0
            progress = decision.progress

    check()


def no_higher_on_a_larger_kl(law: str) -> None:
    """A larger KL never yields a larger factor."""

    @_given(_configs(law), st.lists(_healthy_signals, max_size=30), _positive, _positive)
    def check(config: Config, past: list[Signals], one: float, other: float) -> None:
        state = controller.start(config)
        for signals in past:
            state, _ = controller.step(config, state, signals)
        gentle, harsh = (controller.step(config, state, Signals(kl=kl))[1].factor for kl in sorted((one, other)))
        assert harsh <= gentle * (1 + 1e-12)

    check()


def blind_to_the_size_of_grad_norms(law: str) -> None:
    """Grad norms times a constant change nothing."""

    @_given(_configs(law), st.lists(_healthy_signals, max_size=40), st.integers(-20, 20))
    def check(config: Config, stream: list[Signals], power: int) -> None:
        plain = [signals._replace(kl_reward=None) for signals in stream]
        scaled = [s if s.grad_norm is None else s._replace(grad_norm=s.grad_norm * 2.0**power) for s in plain]
        _same(decide(config, plain), decide(config, scaled))

    check()


def blind_to_the_scale_of_rewards(law: str) -> None:
    """Task rewards that are shifted and scaled change nothing."""
    # Whole numbers and powers of two, so that the shift itself rounds nothing away.
    whole = st.lists(st.integers(-50, 50), max_size=40)

    @_given(_configs(law), whole, st.integers(-1000, 1000), st.integers(-10, 10))
    def check(config: Config, rewards: list[int], shift: int, power: int) -> None:
        plain = [Signals(task_reward=float(r)) for r in rewards]
        moved = [Signals(task_reward=(r + shift) * 2.0**power) for r in rewards]
        _same(decide(config, plain), decide(config, moved))

    check()


def the_same_after_json(law: str) -> None:
    """JSON and back changes no later decision: the memory is plain."""

    @_given(_configs(law), st.lists(_any_signals, max_size=25), st.integers(0, 25))
    def check(config: Config, stream: list[Signals], cut: int) -> None:
        state = controller.start(config)
        for signals in stream[:cut]:
            state, _ = controller.step(config, state, signals)
        restored = State.from_dict(json.loads(json.dumps(state.to_dict())))
        assert restored == state
        for signals in stream[cut:]:
            state, one = controller.step(config, state, signals)
            restored, other = controller.step(config, restored, signals)
            assert repr(one) == repr(other)

    check()


def pure(law: str) -> None:
    """The same arguments give the same decisions, bit for bit."""

    @_given(_configs(law), st.lists(_any_signals, min_size=1, max_size=25))
    def check(config: Config, stream: list[Signals]) -> None:
        assert repr(decide(config, stream)) == repr(decide(config, stream))

    check()


def constant_in_size(law: str) -> None:
    """The memory does not grow with the steps."""

    @settings(max_examples=5, deadline=None)
    @given(_configs(law), st.integers(0, 10**6))
    def check(config: Config, seed: int) -> None:
        draw, state, sizes = random.Random(seed), controller.start(config), []
        for _ in range(200):
            signals = Signals(draw.random(), task_reward=draw.random(), kl_reward=-1.0, grad_norm=draw.random())
            state, _ = controller.step(config, state, signals)
            sizes.append(len(json.dumps(state.to_dict())))
        assert max(sizes[100:]) <= max(sizes[:100]) + 50

    check()


PROPERTIES: dict[str, Callable[[str], None]] = {
    check.__name__: check
    for check in (
        nominal_without_signals,
        in_bounds_on_any_signals,
        no_higher_on_a_larger_kl,
        blind_to_the_size_of_grad_norms,
        blind_to_the_scale_of_rewards,
        the_same_after_json,
        pure,
        constant_in_size,
    )
}


def check_law(law: Law | str) -> None:
    """Check all `PROPERTIES` of a law, under hypothesis's current settings but for its deadline.

    Args:
        law: a function with the signature of `laws.Law`, or the name of an entry of `laws.LAWS`.

    Raises:
        AssertionError: one does not hold; hypothesis says on which settings and signals.
    """
    with _entered(law) as name:
        for check in PROPERTIES.values():
            check(name)


@contextmanager
def _entered(law: Law | str) -> Iterator[str]:
    """The law's name among `LAWS`, for as long as it is checked."""
    if isinstance(law, str):
        yield law
        return
    name = f"{getattr(law, '__name__', 'law')} under test"
    LAWS[name] = law
    try:
        yield name
    finally:
        del LAWS[name]
