"""`AdaptiveWarmupHook` under torchrl's real trainers: what updates ran at, what is read, saved and logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR
from torchrl.checkpoint import Checkpoint
from torchrl.objectives import KLAdaptiveLR
from torchrl.record import CSVLogger
from torchrl.trainers import LRSchedulerHook

from adaptive_warmup import AdaptiveWarmup
from adaptive_warmup.integrations.torchrl import AdaptiveWarmupHook, mean_return, policy_kl
from tests.integrations.agents import EPOCHS, PEAK, SUB_BATCHES, trainer

UPDATES = EPOCHS * SUB_BATCHES
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*experimental/prototype.*:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of torchrl's on its own calls
]


def hooked(run: Any, warmup_steps: int = 4, schedule: bool = False, **settings: Any) -> AdaptiveWarmupHook:
    target = ExponentialLR(run.optimizer, 0.5) if schedule else run.optimizer
    hook = AdaptiveWarmupHook(AdaptiveWarmup(target, warmup_steps, **settings))
    hook.register(run)
    return hook


def lrs_of(run: Any) -> list[float]:
    lrs: list[float] = []
    run.optimizer.register_step_pre_hook(lambda optimizer, *_: lrs.append(optimizer.param_groups[0]["lr"]))
    return lrs


@pytest.mark.parametrize("schedule", [False, True])
def test_every_update_on_a_batch_runs_at_schedule_times_factor(schedule: bool) -> None:
    run = trainer()
    hook, lrs, factors = hooked(run, schedule=schedule, target_kl=1e-4), lrs_of(run), []
    run.register_op("pre_optim_steps", lambda: factors.append(hook.decision.factor))
    run.train()
    shape = [0.5**t if schedule else 1.0 for t in range(6)]
    expected = [PEAK * s * factor for s, factor in zip(shape, factors, strict=True)]
    assert lrs == pytest.approx([lr for lr in expected for _ in range(UPDATES)])
    assert factors[0] == 0.25
    assert min(factors) < 0.25, "a target this low holds the lr below where it began"


def test_without_a_policy_kl_it_is_as_long_as_the_nominal_warmup() -> None:
    run = trainer("a2c")
    hook, lrs = hooked(run), lrs_of(run)
    run.train()
    # Linear as long as nothing is known; exponential from the first episode that ends, since the return then tells.
    assert lrs[::UPDATES] == pytest.approx([PEAK * up for up in (0.25, 0.5, 0.5 * 4 ** (1 / 3), 1.0, 1.0, 1.0)])
    assert hook.scheduler.regulators[0].signals.kl is None


def test_stepped_per_update_by_torchrls_own_hook_it_warms_up_too() -> None:
    run = trainer(batches=1)
    LRSchedulerHook(AdaptiveWarmup(run.optimizer, 4), interval="optim").register(run)
    lrs = lrs_of(run)
    run.train()
    assert lrs[:5] == pytest.approx([PEAK * up for up in (0.25, 0.5, 0.75, 1.0, 1.0)])


def test_the_signals_are_of_the_whole_batch() -> None:
    """The KL beside the exact one between the categoricals before and after, on the same states."""
    run = trainer(frames=1024, batches=6, lr=3e-3)
    kept: dict[str, Any] = {}
    rows = []

    def keep(batch: Any) -> Any:
        kept.update(batch=batch, before=batch["logits"])
        return batch

    def compare() -> None:
        now = run.loss_module.actor_network
        with torch.no_grad(), run.loss_module.actor_network_params.to_module(now):
            after = now.get_dist(kept["batch"]).logits
        old, new = (torch.distributions.Categorical(logits=logits) for logits in (kept["before"], after))
        exact = torch.distributions.kl_divergence(old, new).mean()
        rows.append((float(exact), hook.scheduler.regulators[0].signals))

    run.register_op("pre_epoch", keep)
    hook = hooked(run, warmup_steps=1)
    run.register_op("post_steps", compare)
    lrs = lrs_of(run)
    run.train()
    assert {signals.kl_source for _, signals in rows} == {f"post_update:1x{len(lrs) // 6}"}
    assert [signals.kl for _, signals in rows] == pytest.approx([exact for exact, _ in rows], rel=0.3)
    for _, signals in rows:
        assert 9 <= signals.task_reward <= 500
        assert 0.0 <= signals.clip_fraction <= 1.0
        assert 0.0 < signals.entropy <= np.log(2)
        assert signals.grad_norm > 0.5, "before clipping"
        assert np.isfinite([signals.loss, signals.explained_variance]).all()


def test_in_a_loop_of_ones_own_the_same_two_functions_give_the_signals() -> None:
    run = trainer(frames=256, batches=1)
    (batch,) = list(run.collector)
    run.loss_module.make_value_estimator(gamma=0.99, lmbda=0.95)
    with torch.no_grad():
        run.loss_module.value_estimator(batch)
        assert float(policy_kl(run.loss_module(batch))) == pytest.approx(0.0, abs=1e-6)
        for parameter in run.loss_module.actor_network_params.values(True, True):
            parameter.data += 0.1
        assert float(policy_kl(run.loss_module(batch))) > 1e-4
    assert 9 <= mean_return(batch) <= 500
    assert mean_return(batch[..., :1]) is None, "no episode ends at its first step"


@pytest.mark.parametrize("unified", [False, True])
def test_save_and_load_are_exact(tmp_path: Path, unified: bool) -> None:
    def made() -> tuple[Any, AdaptiveWarmupHook]:
        extra = {"checkpoint": Checkpoint()} if unified else {}
        run = trainer(batches=3, save_trainer_file=tmp_path / "trainer", **extra)
        return run, hooked(run, target_kl=1e-3)

    def go_on(run: Any) -> tuple[list[float], torch.Tensor]:
        run.replay_buffer.empty()  # torchrl's older kind of checkpoint leaves out the order in which it samples
        torch.manual_seed(1)
        lrs = lrs_of(run)
        for _ in range(3):
            run.optim_steps(batch.clone())
            run._post_steps_hook()
        return lrs, torch.cat([p.data.flatten() for p in run.loss_module.parameters()])

    run, hook = made()
    run.train()
    other = trainer(batches=1)
    (batch,) = list(other.collector)
    again, fresh = made()
    again.load_from_file(tmp_path / "trainer")
    assert fresh.scheduler.state_dict() == hook.scheduler.state_dict()
    assert fresh.decision.step == 3
    lrs, weights = go_on(run)
    lrs_again, weights_again = go_on(again)
    assert lrs_again == lrs
    assert len(set(lrs)) == 3
    assert torch.equal(weights_again, weights)


def test_the_log_has_the_factor_of_each_batch(tmp_path: Path) -> None:
    run = trainer(logger=CSVLogger("run", log_dir=str(tmp_path)), log_interval=0)
    hook, factors = hooked(run), []
    run.register_op("pre_optim_steps", lambda: factors.append(hook.decision.factor))
    run.train()
    (file,) = tmp_path.rglob("*factor.csv")
    logged = [float(row.split(",")[1]) for row in file.read_text().splitlines()]
    assert logged == pytest.approx(factors)


def test_a_second_scheduler_on_the_trainer_is_refused() -> None:
    run = trainer()
    scheduler = AdaptiveWarmup(run.optimizer, 4)
    run = trainer(optimizer=run.optimizer, lr_scheduler=scheduler)
    with pytest.raises(ValueError, match="leave out lr_scheduler="):
        AdaptiveWarmupHook(scheduler).register(run)


def watched(run: Any) -> tuple[list[float], list[float]]:
    """Of each batch, as the run goes: the mean return, and the KL of the updates on it."""
    returns: list[float] = []
    kls: list[float] = []
    kept: list[Any] = []

    def keep(batch: Any) -> Any:
        kept.append(batch)
        return batch

    def read(*_: Any) -> None:
        returns.append(mean_return(kept[-1]))
        with torch.no_grad():
            kls.append(float(policy_kl(run.loss_module(kept[-1]))))

    run.register_op("pre_epoch", keep)
    run.register_op("post_optim_complete_log", read)
    return returns, kls


def kl_rule(run: Any, target: float) -> KLAdaptiveLR:
    """torchrl's own rule, on the same measure of the KL and under the same peak."""
    rule, kept = KLAdaptiveLR(run.optimizer, target, max_lr=run.optimizer.param_groups[0]["lr"]), []

    def keep(batch: Any) -> Any:
        kept.append(batch)
        return batch

    def step(*_: Any) -> None:
        with torch.no_grad():
            rule.step(policy_kl(run.loss_module(kept[-1])))

    run.register_op("pre_epoch", keep)
    run.register_op("post_optim_complete_log", step)
    return rule


def test_past_what_the_run_bears_it_cuts_the_lr_and_learns_as_torchrls_own_rule_does() -> None:
    """`benchmarks/experiments/cartpole` in little, at its peak lr, which breaks the plain run there."""
    ends, returns, kls = {}, {}, {}
    for arm in ("adaptive", "KLAdaptiveLR"):
        run = trainer(frames=512, batches=8, lr=0.1, width=64, num_epochs=4)
        returns[arm], kls[arm] = watched(run)
        if arm == "adaptive":
            hook = hooked(run, warmup_steps=6, target_kl=0.02)
        else:
            rule = kl_rule(run, 0.02)
        run.train()
        ends[arm] = run.optimizer.param_groups[0]["lr"]
    assert hook.decision.step == 8
    assert "x the target" in hook.decision.reasons[0]
    assert rule.last_kl == pytest.approx(kls["KLAdaptiveLR"][-1])
    assert max(ends.values()) < 0.05
    assert kls["adaptive"][0] < 0.3 * kls["KLAdaptiveLR"][0], "only a low start spares the run its first update"
    assert np.mean(returns["adaptive"][-3:]) > 2 * returns["adaptive"][0]
