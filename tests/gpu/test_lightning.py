"""Lightning's callback on the device: the lrs of the CPU, no wait in the scheduler's step, resumed to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from tests.gpu.device import DEVICE, no_waits
from tests.integrations.test_lightning import KLS, Line, batches, fit, plain

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval.*"),
]
THERE: dict[str, Any] = {"accelerator": "gpu" if DEVICE.type == "cuda" else "cpu"}


class There(Line):
    """Logs its KL as it would be measured, on the device; nothing waits while the scheduler steps."""

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        assert self.device.type == DEVICE.type
        loss = super().training_step(batch, index)
        self.log("loss", loss)
        return loss

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        with no_waits():
            scheduler.step()


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_updates_run_at_the_lrs_of_the_cpu(schedule: bool, precision: Any) -> None:
    module = There(schedule=schedule)
    warmup = fit(module, precision=precision, **THERE)
    assert module.lrs == pytest.approx(plain(KLS, schedule), rel=1e-6)
    assert warmup.decision == module.warmup.decision
    assert warmup.decision is not None
    assert warmup.decision.step == 8
    assert all(one.loss is not None and one.grad_norm is not None for one in module.signals)


def test_an_update_that_is_not_finite_is_skipped() -> None:
    module = There()
    fit(module, batches(8, _4=float("nan")), **THERE)
    assert bool(module.model.weight.isfinite().all())
    assert [one.grad_norm == one.grad_norm for one in module.signals] == [step != 4 for step in range(8)]


def test_resume_is_exact(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    whole, again = There(schedule=True), There(schedule=True)
    alike = DataLoader(TensorDataset(torch.ones(8, 2), torch.ones(8, 1)))  # Lightning begins a loader anew
    fit(whole, alike, keep, enable_checkpointing=True, **THERE)
    fit(again, alike, ckpt=tmp_path / "step=5.ckpt", **THERE)
    assert again.lrs == whole.lrs[5:]
    assert again.warmup.state_dict() == whole.warmup.state_dict()
    for mine, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)
