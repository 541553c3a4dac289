"""`AdaptiveWarmupCallback` under the real Lightning `Trainer`: what updates ran at, what is read, saved and logged."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from adaptive_warmup import AdaptiveWarmup
from adaptive_warmup.integrations.lightning import AdaptiveWarmupCallback
from tests.optimizers import decided
from tests.processes import run_processes

PEAK = 0.1
KLS = [0.001, 0.004, 0.09, 0.02, 0.008, 0.03, 0.002, 0.01]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval.*"),
]


class Line(LightningModule):
    """Linear regression, which logs a KL as if it were a policy."""

    def __init__(self, interval: str = "step", schedule: bool = False, every: int = 1, kls: Any = KLS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Linear(2, 1)
        self.interval, self.schedule, self.every, self.kls = interval, schedule, every, kls
        self.lrs: list[float] = []
        self.signals: list[Any] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        if index % self.every == 0:
            self.log("train/kl", self.kls[index % len(self.kls)])
        return (self.model(x) - y).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=PEAK)
        optimizer.register_step_post_hook(lambda o, *_: self.lrs.append(o.param_groups[0]["lr"]))
        target = ExponentialLR(optimizer, 0.9) if self.schedule else optimizer
        self.warmup = AdaptiveWarmup(target, warmup_steps=4)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.warmup, "interval": self.interval}}

    def on_train_batch_end(self, *args: Any) -> None:
        self.signals.append(self.warmup.regulators[0].signals)


def batches(count: int = 8, **targets: float) -> DataLoader[Any]:
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    y = x.sum(1, keepdim=True)
    for index, target in targets.items():
        y[int(index[1:])] = target
    return DataLoader(TensorDataset(x, y), batch_size=1)


def fit(module: Line, loader: Any = None, *callbacks: Any, ckpt: Any = None, **settings: Any) -> AdaptiveWarmupCallback:
    warmup = AdaptiveWarmupCallback(kl="train/kl")
    defaults = {"logger": False, "enable_checkpointing": False, "max_epochs": 1}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    trainer = Trainer(callbacks=[warmup, *callbacks], **{**defaults, **quiet, **settings})
    loaders = loader if isinstance(loader, dict) else {"train_dataloaders": loader or batches()}
    trainer.fit(module, **loaders, ckpt_path=ckpt, weights_only=False if ckpt else None)
    return warmup


def plain(kls: list[float], schedule: bool = False) -> list[float]:
    """The lrs of `AdaptiveWarmup` without Lightning."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    return decided(optimizer, ExponentialLR(optimizer, 0.9) if schedule else optimizer, kls)


@pytest.mark.parametrize("schedule", [False, True])
def test_every_update_runs_at_what_was_decided_on_the_logged_signals(schedule: bool) -> None:
    module = Line(schedule=schedule)
    warmup = fit(module)
    assert module.lrs == pytest.approx(plain(KLS, schedule), rel=1e-6)  # Lightning logs in single precision
    assert warmup.decision == module.warmup.decision
    assert warmup.decision.step == 8


def test_while_gradients_accumulate_it_waits() -> None:
    module = Line(kls=[kl for kl in KLS for _ in range(2)])
    fit(module, batches(16), accumulate_grad_batches=2)
    assert module.lrs == pytest.approx(plain(KLS), rel=1e-6)


def test_a_value_that_was_logged_once_counts_once() -> None:
    module = Line(every=3)
    fit(module)
    assert [signals.kl is not None for signals in module.signals] == [i % 3 == 0 for i in range(8)]


class Scored(Line):
    """Logs the number of the batch as the score, every third time, in two epochs; a validation's score is far lower."""

    def __init__(self, **logged: bool) -> None:
        super().__init__()
        self.logged, self.count = logged, 0

    def training_step(self, batch: Any, index: int) -> Tensor:
        if self.count % 3 == 0:
            self.log("task_reward", float(self.count), **self.logged)
        self.count += 1
        return super().training_step(batch, index)

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("task_reward", -100.0)


@pytest.mark.parametrize("logged", [{}, {"on_step": True, "on_epoch": True}], ids=["by step", "by step and epoch"])
def test_neither_an_epochs_mean_nor_a_validations_score_is_one_of_an_update(logged: dict[str, bool]) -> None:
    module = Scored(**logged)
    validated = {"val_check_interval": 2, "num_sanity_val_steps": 1}
    fit(module, {"train_dataloaders": batches(4), "val_dataloaders": batches(2)}, max_epochs=2, **validated)
    assert [signals.task_reward for signals in module.signals] == [0.0, None, None, 3.0, None, None, 6.0, None]


def test_of_what_is_logged_by_epoch_alone_the_mean_counts_once() -> None:
    module = Scored(on_step=False, on_epoch=True)
    fit(module, batches(4), max_epochs=2)
    assert [signals.task_reward for signals in module.signals] == [None] * 4 + [1.5] + [None] * 3


def test_the_gradient_norm_is_the_one_before_clipping() -> None:
    module = Line()
    fit(module, batches(8, _5=1e3), gradient_clip_val=1e-3)
    norms = [signals.grad_norm for signals in module.signals]
    assert min(norms) > 1e-3
    assert norms[5] > 100.0


def test_an_outlier_is_cut_and_what_is_not_finite_is_skipped() -> None:
    module = Line(kls=[0.0001])
    fit(module, batches(40, _30=1e6, _35=math.nan))
    assert module.lrs[29] == PEAK
    assert module.lrs[30] == pytest.approx(1e-3 * PEAK), "the least factor, for the one update"
    assert module.lrs[31] == PEAK
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert [alarm.name for alarm in module.warmup.decision.alarms] == []


@pytest.mark.parametrize("scale", [1.0, 2.0**14])
def test_under_a_loss_scale_the_norm_is_the_gradients_own_and_an_overflow_is_the_scalers(scale: float) -> None:
    """Of a fused optimizer Lightning unscales nothing before the callback comes; what overflows, the scaler skips."""

    class Fused(Line):
        def configure_optimizers(self) -> Any:
            optimizer = AdamW(self.parameters(), lr=PEAK, fused=True)
            self.warmup = AdaptiveWarmup(optimizer, warmup_steps=4)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.warmup, "interval": "step"}}

    module, scaler = Fused(), torch.amp.GradScaler("cpu", init_scale=scale)
    fit(module, batches(8, _3=math.inf), plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    norms = [signals.grad_norm for signals in module.signals]
    assert not math.isfinite(norms[3])
    assert max(norms[:3] + norms[4:]) < 20.0
    assert scaler.get_scale() == scale / 2
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_sparse_gradients_have_a_norm() -> None:
    class Sparse(Line):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 1, sparse=True)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return super().training_step(batch, index) + 30.0 * self.table(torch.tensor([1, 1])).sum()

    module = Sparse()
    fit(module)
    assert all(60.0 < signals.grad_norm < 70.0 for signals in module.signals)


def test_two_warmups_are_logged_apart() -> None:
    module = ActorCritic("ac", "ac")
    names: set[str] = set()

    class Names(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            names.update(trainer.logged_metrics)

    fit(module, None, Names())
    assert {"adaptive_warmup/factor", "adaptive_warmup/factor/2"} <= names


def test_a_batch_without_a_loss_has_no_norm_and_training_goes_on() -> None:
    class Skips(Line):
        def training_step(self, batch: Any, index: int) -> Any:
            loss = super().training_step(batch, index)
            return None if index == 2 else loss

    module = Skips()
    fit(module)
    assert [signals.grad_norm is None for signals in module.signals] == [i == 2 for i in range(8)]
    assert module.lrs == pytest.approx(plain(KLS), rel=1e-6)


class ActorCritic(Line):
    """Two optimizers, stepped in this order, of which these have an `AdaptiveWarmup`; what was decided on at each."""

    def __init__(self, order: str, adaptive: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.models = nn.ModuleDict({name: nn.Linear(2, 1) for name in "ac"})
        self.order, self.adaptive = order, adaptive
        self.seen: dict[str, list[float]] = {name: [] for name in adaptive}

    def training_step(self, batch: Any, index: int) -> None:  # type: ignore[override]
        x, y = batch
        self.log("train/kl", self.kls[index])
        optimizers = dict(zip("ac", self.optimizers(), strict=True))
        for name in self.order:
            optimizers[name].zero_grad()
            self.manual_backward((self.models[name](x) - y).square().mean())
            optimizers[name].step()
        for name, warmup in self.warmups.items():
            warmup.step()
            self.seen[name].append(warmup.regulators[0].signals.kl)

    def configure_optimizers(self) -> Any:
        optimizers = {name: SGD(model.parameters(), lr=PEAK) for name, model in self.models.items()}
        self.warmups = {name: AdaptiveWarmup(optimizers[name], warmup_steps=4) for name in self.adaptive}
        return [*optimizers.values()], [{"scheduler": one, "interval": "step"} for one in self.warmups.values()]

    def on_train_batch_end(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize("adaptive", ["a", "c", "ac"])
@pytest.mark.parametrize("order", ["ac", "ca"])
def test_no_optimizer_takes_the_signals_of_another(order: str, adaptive: str) -> None:
    module = ActorCritic(order, adaptive)
    fit(module)
    assert module.seen == {name: pytest.approx(KLS) for name in adaptive}


def test_resume_is_exact(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    whole, again = Line(schedule=True), Line(schedule=True)
    alike = DataLoader(TensorDataset(torch.ones(8, 2), torch.ones(8, 1)))  # Lightning begins a loader anew
    fit(whole, alike, keep, enable_checkpointing=True)
    warmup = fit(again, alike, ckpt=tmp_path / "step=5.ckpt")
    assert again.lrs == whole.lrs[5:]
    assert again.warmup.state_dict() == whole.warmup.state_dict()
    assert warmup.decision.step == 8
    for mine, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_log_has_the_factor_beside_the_lr_that_it_made(tmp_path: Path) -> None:
    module = Line()
    fit(module, None, LearningRateMonitor(), logger=CSVLogger(tmp_path), log_every_n_steps=1)
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    factors = [float(row["adaptive_warmup/factor"]) for row in rows if row.get("adaptive_warmup/factor")]
    lrs = [float(row["lr-SGD"]) for row in rows if row.get("lr-SGD")]
    assert lrs == pytest.approx([PEAK * factor for factor in factors], rel=1e-6)
    assert lrs == pytest.approx(module.lrs)
    assert len(lrs) == 8


@pytest.mark.parametrize("interval", ["epoch", "none"])
def test_a_module_that_would_not_warm_up_is_refused(interval: str) -> None:
    module = Line(interval="epoch")
    if interval == "none":
        module.configure_optimizers = lambda: SGD(module.parameters(), lr=PEAK)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match='"step"'):
        fit(module)


def test_bad_names_fail_where_they_come_in() -> None:
    with pytest.raises(TypeError, match="approx_kl"):
        AdaptiveWarmupCallback(approx_kl="train/kl")
    with pytest.raises(ValueError, match="kl_source='later'"):
        AdaptiveWarmupCallback(kl_source="later")


IN_TWO = """
import json, os, sys
from tests.integrations.test_lightning import KLS, Line, fit

rank = int(os.environ["RANK"])
module = Line(kls=[kl * (1 + 9 * rank) for kl in KLS])
fit(module, devices=2, strategy="ddp", use_distributed_sampler=False)
with open(f"{sys.argv[1]}/rank{rank}.json", "w") as file:
    json.dump(module.lrs, file)
"""


def test_two_processes_go_by_the_first_ones_signals(tmp_path: Path) -> None:
    run_processes(IN_TWO, tmp_path, tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second == pytest.approx(plain(KLS), rel=1e-6)


OBSERVED = """
import json, os, sys
from tests.integrations.test_lightning import KLS, PEAK, Line, fit

rank = int(os.environ["RANK"])

class Observes(Line):
    def optimizer_step(self, epoch, index, *args):
        super().optimizer_step(epoch, index, *args)
        if rank == 0:
            self.trainer.callbacks[0].observe(kl=KLS[index], kl_source="probe")
        elif index == 3:
            self.trainer.callbacks[0].observe(kl=9.0)

module = Observes(every=100)
fit(module, devices=2, strategy="ddp", use_distributed_sampler=False)
signals = [[signals.kl, signals.kl_source, signals.kl_lr] for signals in module.signals]
with open(f"{sys.argv[1]}/rank{rank}.json", "w") as file:
    json.dump([[lr / PEAK for lr in module.lrs], signals], file)
"""


def test_what_the_first_process_observes_counts_for_both(tmp_path: Path) -> None:
    """After an update, and so known at the next one, as a KL of the lr that the update ran at."""
    run_processes(OBSERVED, tmp_path, tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    lrs, signals = first
    assert len(lrs) == len(KLS)
    # The module has logged one of update 0, and of each update one counts.
    assert signals[2:] == [[kl, "probe", pytest.approx(lr)] for kl, lr in zip(KLS[1:-1], lrs[1:-1], strict=True)]


RESUMED = """
import json, os, sys
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset
from tests.integrations.test_lightning import KLS, Line, fit

folder, rank = sys.argv[1], int(os.environ["RANK"])

class Observes(Line):
    def optimizer_step(self, epoch, index, *args):
        super().optimizer_step(epoch, index, *args)
        self.trainer.callbacks[0].observe(kl=KLS[index])

alike = DataLoader(TensorDataset(torch.ones(8, 2), torch.ones(8, 1)))
common = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
whole, again = Observes(every=100), Observes(every=100)
keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=5, save_top_k=-1)
fit(whole, alike, keep, enable_checkpointing=True, **common)
fit(again, alike, ckpt=f"{folder}/step=5.ckpt", **common)
with open(f"{folder}/rank{rank}.json", "w") as file:
    json.dump([whole.lrs, again.lrs], file)
"""


def test_what_waits_for_the_next_update_is_in_the_checkpoint_of_two_processes(tmp_path: Path) -> None:
    run_processes(RESUMED, tmp_path, tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    whole, again = first
    assert again == whole[5:]
