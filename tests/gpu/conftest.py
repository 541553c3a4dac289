"""The tests of a GPU, skipped where there is none. `GPU_TESTS_DEVICE=cpu` runs what needs no CUDA.

They share the fixtures of the PPO tests, and make CUDA repeat to the bit where a test asks for that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from tests.gpu.device import ON_CUDA
from tests.ppo.conftest import copy_task, make_policy, tokenizer, tool_task

__all__ = ["copy_task", "make_policy", "tokenizer", "tool_task"]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA begins


@pytest.fixture(autouse=True)
def a_device() -> None:
    if ON_CUDA and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device; GPU_TESTS_DEVICE=cpu runs what needs none")


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Kernels that repeat to the bit: sums by atomic adds do not, whatever is trained."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
