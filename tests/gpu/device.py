"""The device that these tests run on, and how they see whether Python waits for it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

DEVICE = torch.device(os.environ.get("GPU_TESTS_DEVICE", "cuda"))
ON_CUDA = DEVICE.type == "cuda"
CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not ON_CUDA, reason="asks CUDA itself: what waits, what is queued, what it can capture")


@contextmanager
def no_waits() -> Iterator[None]:
    """What would wait for the device raises within."""
    with _watched("error"):
        yield


@contextmanager
def waits() -> Iterator[Callable[[], int]]:
    """Gives a function that says how often the device has been waited for since the begin."""
    with warnings.catch_warnings(record=True) as caught, _watched("warn"):
        warnings.simplefilter("always")
        yield lambda: sum("called a synchronizing CUDA operation" in str(one.message) for one in caught)


@contextmanager
def _watched(mode: str) -> Iterator[None]:
    if not ON_CUDA:
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def busy() -> torch.cuda.Event:
    """Half a second of work for the device, and an event behind it."""
    torch.cuda._sleep(10**9)
    event = torch.cuda.Event()
    event.record()
    return event
