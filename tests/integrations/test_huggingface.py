"""What lr `AdaptiveWarmupCallback` has the real `transformers.Trainer` run at, and whose warmup it is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from transformers import Trainer, TrainerCallback

from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from adaptive_warmup.schedules import default_warmup_steps
from tests.integrations.trainers import (
    FLAT,
    METRIC_DRIVEN,
    PEAK,
    RAMP,
    SCHEDULES,
    STEPS,
    WARMUP,
    Line,
    Plant,
    Record,
    arguments,
    flat,
    scheduled,
    step_logs,
    trainer,
)

# --- What the lr is ---


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_signals_the_lr_is_the_schedule_under_a_linear_warmup(
    tmp_path: Path, schedule: str, caplog: pytest.LogCaptureFixture
) -> None:
    warmup = AdaptiveWarmupCallback()
    record = Record(warmup)
    run = trainer(tmp_path, [record, warmup], **arguments(schedule))
    run.train()
    assert record.lrs == pytest.approx([lr * up for lr, up in zip(scheduled(schedule), RAMP, strict=True)], rel=1e-12)
    assert record.logged("learning_rate") == record.lrs
    assert record.logged("adaptive_warmup/factor") == RAMP
    assert record.logged("adaptive_warmup/nominal") == RAMP
    history = step_logs(run.state.log_history)
    assert [logs["adaptive_warmup/factor"] for logs in history] == RAMP
    assert warmup.decision is not None
    assert (warmup.decision.phase, warmup.decision.step) == ("done", STEPS)
    assert "begins below its peak" not in caplog.text


def test_linear_by_hand(tmp_path: Path) -> None:
    record, warmup = Record(), AdaptiveWarmupCallback()
    trainer(tmp_path, [record, warmup], max_steps=6, warmup_steps=2, learning_rate=0.4).train()
    assert record.lrs == pytest.approx([0.2, 0.4, 0.4, 0.3, 0.2, 0.1])


def test_a_ceiling_holds_the_lr_below_the_peak(tmp_path: Path) -> None:
    warmup = AdaptiveWarmupCallback(warmup_steps=10, min_target_kl=0.01)
    record = Record(warmup)
    trainer(tmp_path, [record, Plant(record, warmup, bears=0.3 * PEAK), warmup], max_steps=30, **FLAT).train()
    # The first update runs at a tenth of the peak; its KL tells the gain, exactly, and .3 is what the run bears.
    assert record.lrs[0] == pytest.approx(0.1 * PEAK)
    assert record.lrs[-10:] == pytest.approx([0.3 * PEAK] * 10)
    assert max(record.lrs) <= 0.3 * PEAK * (1 + 1e-9)
    assert record.logged("adaptive_warmup/ceiling")[-1] == pytest.approx(0.3)
    assert record.logged("adaptive_warmup/phase")[-1] == 3
    assert record.logged("learning_rate") == record.lrs


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedule_lies_on_top_of_the_ceiling(tmp_path: Path, schedule: str) -> None:
    warmup = AdaptiveWarmupCallback(min_target_kl=0.01)
    record = Record(warmup)
    # A factor of .5 is borne at the peak, and the KL target falls with the square of the schedule. Where that is above
    # the peak (greedy), it rises no further, and the lr comes back slowly.
    lrs = scheduled(schedule)

    class Decaying(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            warmup.observe(kl=0.01 * (record.lrs[-1] / (0.5 * PEAK)) ** 2)

    trainer(tmp_path, [record, Decaying(), warmup], **arguments(schedule)).train()
    assert max(record.lrs[6:]) < 0.52 * PEAK
    used = [used / lr for used, lr in zip(record.lrs, lrs, strict=True)][-6:]
    if schedule == "greedy":
        assert 0.25 < used[0] < used[-1] < 0.5
    else:
        assert used == pytest.approx([0.5] * 6, rel=0.02)


def test_the_lr_never_exceeds_a_schedule_whose_warmup_ends_below_the_optimizers_lr(tmp_path: Path) -> None:
    model, record = Line(), Record()
    optimizer = SGD(model.parameters(), 0.4)

    def warming(num_warmup_steps: int) -> Callable[[int], float]:
        return lambda t: 0.25 * min(1.0, t / num_warmup_steps)

    optimizers = (optimizer, LambdaLR(optimizer, warming(4)))
    trainer(tmp_path, [record, AdaptiveWarmupCallback()], model=model, optimizers=optimizers, max_steps=6).train()
    assert record.lrs == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_a_safe_kl_shortens_the_warmup_and_never_exceeds_the_schedule(tmp_path: Path) -> None:
    warmup = AdaptiveWarmupCallback()
    record = Record(warmup)
    plant = Plant(record, warmup, bears=10 * PEAK, wiggle=0.2)
    trainer(tmp_path, [record, plant, warmup], max_steps=30, warmup_steps=20).train()
    assert record.logged("adaptive_warmup/factor").index(1.0) < 10
    after = [PEAK * min(1.0, (30 - t) / 10) for t in range(30)]  # the Trainer's own schedule, peak until step 20
    assert all(lr <= most * (1 + 1e-12) for lr, most in zip(record.lrs, after, strict=True))
    assert record.lrs[10:] == pytest.approx(after[10:])


def test_signals_from_within_compute_loss_meet_the_lr_of_that_very_step(tmp_path: Path) -> None:
    warmup = AdaptiveWarmupCallback(warmup_steps=10, min_target_kl=0.01)
    record = Record(warmup)

    class Own(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            lr = self.optimizer.param_groups[0]["lr"]
            warmup.observe(kl=0.01 * (lr / (0.3 * PEAK)) ** 2)
            return super().compute_loss(*args, **kwargs)

    trainer(tmp_path, [record, warmup], cls=Own, max_steps=20, **FLAT).train()
    assert record.lrs[-5:] == pytest.approx([0.3 * PEAK] * 5)
    assert max(record.lrs) <= 0.3 * PEAK * (1 + 1e-9)


def test_several_param_groups_keep_their_ratio(tmp_path: Path) -> None:
    model, record = Line(), Record()
    optimizer = AdamW([{"params": [model.weight], "lr": 0.01}, {"params": [model.bias], "lr": 0.1}])
    run = trainer(tmp_path, [record, AdaptiveWarmupCallback(4)], model=model, optimizers=(optimizer, None), **FLAT)
    run.train()
    assert record.groups == [pytest.approx([0.01 * up, 0.1 * up]) for up in RAMP]


def test_a_first_group_that_is_frozen_hides_no_kl(tmp_path: Path) -> None:
    model, warmup = Line(), AdaptiveWarmupCallback(warmup_steps=10, min_target_kl=0.01)
    record = Record(warmup)

    class Plants(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            warmup.observe(kl=0.01 * (record.groups[-1][1] / (0.3 * PEAK)) ** 2)

    optimizer = SGD([{"params": [model.bias], "lr": 0.0}, {"params": [model.weight], "lr": PEAK}])
    settings = {"model": model, "optimizers": (optimizer, None), "max_steps": 30, **FLAT}
    trainer(tmp_path, [record, Plants(), warmup], **settings).train()
    assert record.groups[0] == pytest.approx([0.0, 0.1 * PEAK])
    assert record.groups[-10:] == [pytest.approx([0.0, 0.3 * PEAK])] * 10


def torch_keeps_a_tensor_lr() -> bool:
    lr = torch.tensor(PEAK)
    optimizer = AdamW(Line().parameters(), lr=lr)
    plateau = ReduceLROnPlateau(optimizer, patience=0)
    plateau.step(1.0)
    plateau.step(2.0)
    return optimizer.param_groups[0]["lr"] is lr


@pytest.mark.parametrize("schedule", ["linear", "constant", "reduce_lr_on_plateau"])
def test_a_tensor_lr_is_filled_in_place(tmp_path: Path, schedule: str) -> None:
    if schedule in METRIC_DRIVEN and not torch_keeps_a_tensor_lr():
        pytest.skip("this torch's ReduceLROnPlateau puts a float in place of the tensor")
    model, record = Line(), Record()
    optimizer = AdamW(model.parameters(), lr=torch.tensor(PEAK))
    tensors: list[Any] = []

    class Looks(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
            tensors.append(optimizer.param_groups[0]["lr"])

    with_lr = {**arguments(schedule), "optimizers": (optimizer, None)}
    trainer(tmp_path, [record, AdaptiveWarmupCallback(WARMUP), Looks()], model=model, **with_lr).train()
    expected = [lr * up for lr, up in zip(scheduled(schedule), RAMP, strict=True)]
    assert record.lrs == pytest.approx(expected, rel=1e-6)
    assert all(isinstance(lr, Tensor) and lr is tensors[0] for lr in tensors)
    assert record.logged("learning_rate") == record.lrs


CUSTOM: dict[str, Any] = {
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, T_max=STEPS),
    "one_cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=PEAK, total_steps=STEPS + 1),
    "step": lambda optimizer: StepLR(optimizer, step_size=3, gamma=0.5),
    "sequential": lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer, 0.5, total_iters=4), CosineAnnealingLR(optimizer, T_max=8)], milestones=[4]
    ),
}


def alone(make: Any) -> list[float]:
    """The lrs of a torch schedule that nobody disturbs."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK, momentum=0.9)
    schedule = make(optimizer)
    lrs = []
    for _ in range(STEPS):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return lrs


@pytest.mark.parametrize("name", CUSTOM)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_a_schedule_of_the_users_own_keeps_its_shape(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, record = Line(), Record()
    optimizer = SGD(model.parameters(), lr=PEAK, momentum=0.9)
    optimizers = (optimizer, CUSTOM[name](optimizer))
    trainer(tmp_path, [record, AdaptiveWarmupCallback(WARMUP)], model=model, optimizers=optimizers).train()
    assert record.lrs == pytest.approx([lr * up for lr, up in zip(alone(CUSTOM[name]), RAMP, strict=True)])
    assert record.logged("learning_rate") == record.lrs
    kind = type(optimizers[1]).__name__
    words = f"{kind} begins below its peak: if it warms up, it and this warmup multiply"
    assert (words in caplog.text) == (name in ("one_cycle", "sequential"))


@pytest.mark.parametrize("name", ["cosine", "one_cycle", "plateau"])
def test_the_peak_is_that_of_the_users_own_schedule(tmp_path: Path, name: str) -> None:
    """What the run bears is a share of the highest lr of the schedule, whatever `args.learning_rate` says."""
    model, warmup = Line(), AdaptiveWarmupCallback(WARMUP, min_target_kl=0.01)
    record = Record(warmup)
    optimizer = SGD(model.parameters(), lr=PEAK, momentum=0.9)
    schedule = ReduceLROnPlateau(optimizer, patience=99) if name == "plateau" else CUSTOM[name](optimizer)
    plant = Plant(record, warmup, bears=0.5 * PEAK)
    trainer(
        tmp_path, [record, plant, warmup], model=model, optimizers=(optimizer, schedule), learning_rate=5e-5
    ).train()
    ceilings = record.logged("adaptive_warmup/ceiling")
    assert ceilings == pytest.approx([0.5] * len(ceilings))
    assert len(ceilings) == STEPS - 1


# --- Whose warmup it is ---


def test_a_group_added_within_a_step_joins_in(tmp_path: Path) -> None:
    class Unfreeze(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                optimizer.optimizer.add_param_group({"params": [model.bias], "lr": 0.1})

    model, record = Line(), Record()
    optimizer = SGD([model.weight], lr=PEAK)
    schedule = ReduceLROnPlateau(optimizer)
    callbacks = [record, AdaptiveWarmupCallback(4), Unfreeze()]
    trainer(tmp_path, callbacks, model=model, optimizers=(optimizer, schedule)).train()
    assert record.lrs == pytest.approx(flat(STEPS, 4))
    # in the step that it came in, it still ran at its own lr
    assert [lrs[1] for lrs in record.groups[1:]] == pytest.approx([0.1, *(0.1 * up for up in RAMP[2:])])


@pytest.mark.parametrize("signals", [False, True])
@pytest.mark.parametrize("theirs", [4, 0.2])  # of 20 steps
def test_the_trainers_warmup_is_replaced_and_not_doubled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, theirs: float, signals: bool
) -> None:
    warmup = AdaptiveWarmupCallback(min_target_kl=0.01)
    record = Record(warmup)
    plants = [Plant(record, warmup, bears=4 * PEAK)] if signals else []
    with caplog.at_level(logging.INFO, "adaptive_warmup"):
        trainer(tmp_path, [record, *plants, warmup], max_steps=20, warmup_steps=theirs).train()
    assert "nominal warmup 4 steps (the Trainer's warmup_steps); replaces the Trainer's ramp of 4 steps" in caplog.text
    decay = [(20 - t) / 16 * PEAK for t in range(4, 20)]
    # With signals at most as long: 1/4 * 4^(t/2) is the fastest rise from a quarter, in three steps.
    rise = [0.25, 0.5, 1.0, 1.0] if signals else [0.25, 0.5, 0.75, 1.0]
    assert record.lrs == pytest.approx([PEAK * up for up in rise] + decay)


def test_an_explicit_warmup_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = Record()
    with caplog.at_level(logging.INFO, "adaptive_warmup"):
        trainer(tmp_path, [record, AdaptiveWarmupCallback(8)], warmup_steps=2).train()
    assert "nominal warmup 8 steps (the callback's setting); replaces the Trainer's ramp of 2 steps" in caplog.text
    decay = [1.0, 1.0, *((12 - t) / 10 for t in range(2, 12))]
    assert record.lrs == pytest.approx([PEAK * s * min(1.0, (t + 1) / 8) for t, s in enumerate(decay)])


def test_the_default_warmup(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert [default_warmup_steps(n) for n in (1, 100, 150, 5000, 10**6)] == [10, 10, 15, 500, 1000]
    record = Record()
    with caplog.at_level(logging.INFO, "adaptive_warmup"):
        trainer(tmp_path, [record, AdaptiveWarmupCallback()], **FLAT).train()
    assert "nominal warmup 10 steps (a tenth of the run" in caplog.text
    assert "replaces" not in caplog.text
    assert record.lrs == pytest.approx(flat(STEPS, 10))


def test_nothing_is_said_to_be_replaced_where_the_schedule_has_no_ramp(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "adaptive_warmup"):
        trainer(tmp_path, [AdaptiveWarmupCallback()], warmup_steps=4, **FLAT).train()
    assert "nominal warmup 4 steps (the Trainer's warmup_steps)" in caplog.text
    assert "replaces" not in caplog.text


def test_a_schedule_above_the_optimizers_lr_raises_no_kl_target(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes to 3.9 times that; the run bears a fifth of it, and more than that by noise alone it never gets."""
    model = Line()
    optimizer = SGD(model.parameters(), lr=PEAK)
    warmup = AdaptiveWarmupCallback(WARMUP, min_target_kl=0.01)
    record = Record(warmup)
    optimizers = (optimizer, LambdaLR(optimizer, lambda step: 1.0 + step / 10))
    plant = Plant(record, warmup, bears=0.2 * PEAK)
    trainer(tmp_path, [record, plant, warmup], model=model, optimizers=optimizers, max_steps=30).train()
    assert max(record.lrs[10:]) < 0.25 * PEAK
    assert caplog.text.count("is above the peak that is known of it") == 1


def test_an_optimizer_that_updates_within_the_backward_pass_is_refused(tmp_path: Path) -> None:
    """It is told the lr by the Trainer, from the schedule, at a time when that has its own."""

    class Lomo(SGD):  # as the class of the package `lomo-optim` is called, whose kernels want a GPU
        pass

    model = Line()
    parts = {"model": model, "optimizers": (Lomo(model.parameters(), lr=PEAK), None)}
    run = trainer(tmp_path, [AdaptiveWarmupCallback(WARMUP)], **parts)
    with pytest.raises(ValueError, match=r"the optimizer is Lomo, which updates during the backward pass.*another"):
        run.train()
