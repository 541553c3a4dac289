"""`AdaptiveWarmupCallback` leaves the real `transformers.Trainer` as it was, and says what it cannot do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LinearLR, SequentialLR
from transformers import Adafactor, Trainer, TrainerCallback
from transformers.optimization import AdafactorSchedule

from adaptive_warmup import AdaptiveWarmup
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from tests.integrations.trainers import (
    FLAT,
    ON_A_METRIC,
    PEAK,
    RAMP,
    STEPS,
    WARMUP,
    Line,
    Plant,
    Record,
    arguments,
    flat,
    plain,
    same,
    scheduled,
    trainer,
    weights,
)
from tests.processes import run_processes


class BrokenError(Exception):
    pass


class Breaks(TrainerCallback):
    """Raises once, within step number `step`."""

    def __init__(self, step: int, event: str) -> None:
        self.step = step
        setattr(self, event, self._raise)

    def _raise(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.step = -1
            raise BrokenError


def test_two_callbacks_on_one_trainer_are_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, [AdaptiveWarmupCallback(), AdaptiveWarmupCallback()])
    with pytest.raises(ValueError, match="two AdaptiveWarmupCallbacks"):
        run.train()


def test_added_by_add_callback(tmp_path: Path) -> None:
    record = Record()
    run = trainer(tmp_path, [record], **FLAT)
    run.add_callback(AdaptiveWarmupCallback(4))
    run.train()
    assert record.lrs == pytest.approx(flat(STEPS, 4))
    assert record.logged("adaptive_warmup/factor") == RAMP


def test_training_twice_is_two_equal_warmups_and_leaves_the_trainer_as_it_was(tmp_path: Path) -> None:
    record = Record()
    run = trainer(tmp_path, [record, AdaptiveWarmupCallback(4)], **FLAT)
    methods = [name for name, value in vars(run).items() if callable(value)]
    run.train()
    assert [name for name, value in vars(run).items() if callable(value)] == methods
    run.train()
    assert record.lrs == pytest.approx(flat(STEPS, 4) * 2)
    assert [name for name, value in vars(run).items() if callable(value)] == methods


def test_a_method_that_somebody_else_replaced_comes_back(tmp_path: Path) -> None:
    run = trainer(tmp_path, [AdaptiveWarmupCallback(4)])
    seen: list[dict[str, float]] = []
    original = run.log

    def mine(logs: dict[str, float], *args: Any) -> None:
        seen.append(logs)
        original(logs, *args)

    run.log = mine
    run.train()
    assert run.log is mine
    assert len(seen) == STEPS + 1


@pytest.mark.parametrize("schedule", ["linear", "reduce_lr_on_plateau"])
@pytest.mark.parametrize("event", ["on_pre_optimizer_step", "on_optimizer_step", "on_step_end"])
def test_training_again_after_an_exception(tmp_path: Path, schedule: str, event: str) -> None:
    record = Record()
    settings = {**arguments(schedule), "save_strategy": "no"}
    run = trainer(tmp_path, [record, AdaptiveWarmupCallback(WARMUP), Breaks(1, event)], **settings)
    methods = [name for name, value in vars(run).items() if callable(value)]
    with pytest.raises(BrokenError):
        run.train()
    record._hook.remove()
    record.groups.clear()
    run.train()
    assert record.lrs == pytest.approx([lr * up for lr, up in zip(scheduled(schedule), RAMP, strict=True)])
    assert [name for name, value in vars(run).items() if callable(value)] == methods


@pytest.mark.parametrize("schedule", ["constant", "reduce_lr_on_plateau"])
def test_an_epoch_cut_short_within_a_step_does_not_leave_our_lr_behind(tmp_path: Path, schedule: str) -> None:
    class Cut(TrainerCallback):
        done = False

        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1 and not self.done:
                self.done = control.should_epoch_stop = True

    record = Record()
    settings = {**arguments(schedule), "gradient_accumulation_steps": 2}
    trainer(tmp_path, [record, AdaptiveWarmupCallback(WARMUP), Cut()], **settings).train()
    expected = [lr * up for lr, up in zip(scheduled(schedule), RAMP, strict=True)]
    assert record.lrs == pytest.approx(expected[: len(record.lrs)])
    assert len(record.lrs) > 8


@pytest.mark.parametrize("schedule", ["cosine", ON_A_METRIC[-1]])
def test_harmless(tmp_path: Path, schedule: str) -> None:
    """A law that does nothing changes nothing, to the bit."""
    settings = {**arguments(schedule), "warmup_steps": 0}
    bare = Record()
    without = trainer(tmp_path, [bare], **settings)
    without.train()
    record = Record()
    run = trainer(tmp_path, [record, AdaptiveWarmupCallback(1, law="linear")], **settings)
    run.train()
    assert same(weights(run), weights(without))
    assert record.lrs == bare.lrs
    assert plain(record.logs) == plain(bare.logs)


def test_bf16_autocast(tmp_path: Path) -> None:
    warmup = AdaptiveWarmupCallback(4, min_target_kl=0.01)
    record = Record(warmup)
    trainer(tmp_path, [record, Plant(record, warmup, bears=4 * PEAK), warmup], bf16=True, **FLAT).train()
    assert record.lrs[-1] == pytest.approx(PEAK)
    assert all(isinstance(s.loss, float) and isinstance(s.grad_norm, float) for s in record.signals if s)


# --- What it refuses ---


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"warmup_steps": 0}, ValueError, "warmup_steps=0"),
        ({"warmup_steps": 2.5}, ValueError, "warmup_steps=2.5"),
        ({"warmup_steps": -3}, ValueError, "warmup_steps=-3"),
        ({"target_kl": -1.0}, ValueError, "target_kl=-1.0"),
        ({"target_kl": math.nan}, ValueError, "target_kl=nan"),
        ({"min_factor": 2.0}, ValueError, "min_factor=2.0"),
        ({"min_warmup_steps": 9, "warmup_steps": 4}, ValueError, "min_warmup_steps=9"),
        ({"law": "quadratic"}, ValueError, "law='quadratic'"),
        ({"on_gaming": "panic"}, ValueError, "on_gaming='panic'"),
        ({"warmup": 10}, TypeError, "unknown setting 'warmup': known are warmup_steps, target_kl"),
        ({"log": True}, TypeError, "log=True: give a path, such as 'run.jsonl'"),
    ],
)
def test_bad_settings_are_refused_at_construction(settings: Any, error: Any, words: str) -> None:
    with pytest.raises(error) as caught:
        AdaptiveWarmupCallback(**settings)
    assert words in str(caught.value)


@pytest.mark.parametrize("part", ["Trainer", "Line", "AdamW", "TrainingArguments"])
def test_attached_to_the_wrong_object(tmp_path: Path, part: str) -> None:
    run = trainer(tmp_path)
    wrong = {"Trainer": run, "Line": run.model, "AdamW": run.create_optimizer(), "TrainingArguments": run.args}[part]
    with pytest.raises(TypeError, match=rf"^{part}: the Trainer takes .*callbacks=\[AdaptiveWarmupCallback\(\)\]\)"):
        AdaptiveWarmupCallback(wrong)


def test_an_optimizer_without_a_schedule_is_refused(tmp_path: Path) -> None:
    class Bare(Trainer):
        def create_scheduler(self, *args: Any, **kwargs: Any) -> None:
            pass

    with pytest.raises(ValueError, match=r"optimizer=\w+\(\.\.\.\) and lr_scheduler=None: .* let the"):
        trainer(tmp_path, [AdaptiveWarmupCallback()], cls=Bare).train()


def test_the_schedule_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    model = Line()
    mine, other = torch.optim.SGD(model.parameters(), PEAK), torch.optim.SGD(Line().parameters(), PEAK)
    pair = (mine, LinearLR(other))
    with pytest.raises(ValueError, match=r"lr_scheduler, LinearLR, sets the lr of another .* its SGD: give"):
        trainer(tmp_path, [AdaptiveWarmupCallback()], model=model, optimizers=pair).train()


@pytest.mark.parametrize("within", [False, True])
def test_on_a_schedule_that_is_adaptive_already_it_is_refused(tmp_path: Path, within: bool) -> None:
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), PEAK)
    schedule: Any = AdaptiveWarmup(optimizer, 4)
    if within:
        schedule = SequentialLR(optimizer, [schedule, LinearLR(optimizer)], [4])
    with pytest.raises(ValueError, match=r"is (AdaptiveWarmup|SequentialLR), and so adaptive: leave out Adaptive"):
        trainer(tmp_path, [AdaptiveWarmupCallback()], model=model, optimizers=(optimizer, schedule)).train()


def test_on_an_optimizer_that_makes_its_own_lr_it_is_refused(tmp_path: Path) -> None:
    model = Line()
    optimizer = Adafactor(model.parameters())
    optimizers = (optimizer, AdafactorSchedule(optimizer))
    with pytest.raises(ValueError, match=r"lr=0\.0 of Adafactor, relative_step=True: it makes its own lr"):
        trainer(tmp_path, [AdaptiveWarmupCallback()], model=model, optimizers=optimizers).train()


def test_a_trainer_that_is_done_and_has_let_go_of_its_parts_trains_anew(tmp_path: Path) -> None:
    record = Record()
    run = trainer(tmp_path, [record, AdaptiveWarmupCallback(4)], **FLAT)
    run.train()
    run.accelerator.free_memory()
    run.optimizer = run.lr_scheduler = None
    run.evaluate()
    run.train()
    assert record.lrs == pytest.approx(2 * flat(STEPS, 4))


def test_unknown_signals_are_refused_with_the_nearest_name() -> None:
    warmup = AdaptiveWarmupCallback()
    with pytest.raises(TypeError, match="Did you mean grad_norm"):
        warmup.observe(grad_nrm=1.0)
    with pytest.raises(TypeError, match="kl, with kl_source='in_loop'"):
        warmup.observe(approx_kl=1.0)
    with pytest.raises(ValueError, match="kl_source='guess'"):
        warmup.observe(kl=1.0, kl_source="guess")
    with pytest.raises(ValueError, match="shape"):
        warmup.observe(kl=torch.ones(3))


def test_what_is_observed_before_training_counts_for_the_first_step(tmp_path: Path) -> None:
    warmup = AdaptiveWarmupCallback(10)
    record = Record(warmup)
    warmup.observe(kl=0.01)
    trainer(tmp_path, [record, warmup], max_steps=2, **FLAT).train()
    assert [s.kl for s in dict.fromkeys(record.signals) if s] == [0.01, None]


def test_what_is_observed_after_training_counts_for_the_first_step_of_the_next(tmp_path: Path) -> None:
    warmup = AdaptiveWarmupCallback(10)
    record = Record(warmup)
    run = trainer(tmp_path, [record, warmup], max_steps=2, **FLAT)
    run.train()
    warmup.observe(kl=0.02)
    run.train()
    assert [s.kl for s in dict.fromkeys(record.signals) if s] == [None, None, 0.02, None]


@pytest.mark.parametrize("event", ["on_step_begin", "on_step_end", "on_epoch_begin"])
def test_added_while_training_runs(tmp_path: Path, event: str) -> None:
    class Adds(TrainerCallback):
        def __init__(self) -> None:
            setattr(self, event, lambda *args, **kwargs: run.add_callback(AdaptiveWarmupCallback(4)))

    run = trainer(tmp_path, [Adds()])
    with pytest.raises(RuntimeError, match=r"before trainer\.train"):
        run.train()


_PROCESS = """
import json, sys
from pathlib import Path
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from tests.integrations.trainers import FLAT, Record, Told, trainer, weights

out = Path(sys.argv[1])
warmup = AdaptiveWarmupCallback(8, min_target_kl=0.01)
record = Record(warmup)
run = trainer(out, [record, Told(warmup), warmup], ddp_backend="gloo", **FLAT)
run.train()
told = {"lrs": record.lrs, "weights": [tensor.tolist() for tensor in weights(run)]}
(out / f"{run.args.process_index}.json").write_text(json.dumps(told))
"""


def test_processes_that_observe_different_things_stay_together(tmp_path: Path) -> None:
    """The first one's KL is at the target at a third of the peak; the second one sees nine times that."""
    run_processes(_PROCESS, tmp_path, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["lrs"][-4:] == pytest.approx([PEAK / 3] * 4, rel=0.01)
