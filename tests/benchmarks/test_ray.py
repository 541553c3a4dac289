"""The study's slices under joblib's Ray backend, on a Ray of this test's own with two CPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.experiments.stability import run as runner
from benchmarks.experiments.stability.sweep import Slice

ray = pytest.importorskip("ray", reason="the extra `bench` has it: joblib's backend beyond one machine")


def test_slices_run_on_ray_as_they_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"steps": 2, "progress": False}
    parts = [Slice("chain_sum", arm, (0, 1), peaks=(1e-3, 1e-2)) for arm in ("ours", "ratio 0.1")]
    expected = [runner.run([part], **size)[0] for part in parts]
    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", None)  # this process runs none of them
        ray.init(address="local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False)
        try:
            runner.sweep(parts, tmp_path, "ray", jobs=2, **size)
        finally:
            ray.shutdown()
    for part, wanted in zip(parts, expected, strict=True):
        kept = np.load(tmp_path / f"{part.name}.npz")
        assert kept["evaluation"].tolist() == wanted["evaluation"].tolist()
        assert kept["kl_reward"].tolist() == wanted["kl_reward"].astype(np.float16).tolist()


def test_one_job_on_ray_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        runner.main(["--backend", "ray"])
    assert "--backend ray --jobs 1 would run here: give --jobs 2 or more, -1 for all" in capsys.readouterr().err
