"""Generators of random numbers: seeds drawn from them, and how they go on from a checkpoint."""

from __future__ import annotations

import logging
import zlib

import torch
from torch import Tensor

_log = logging.getLogger("adaptive_warmup")


def draw_seed(generator: torch.Generator) -> int:
    """A seed for another generator."""
    # Its own device, said: a user's default device may be another one, and would refuse the generator.
    return int(torch.randint(2**31, (), generator=generator, device=generator.device))


def permutation(count: int, generator: torch.Generator) -> Tensor:
    """The numbers below `count` in a random order, on the generator's device."""
    return torch.randperm(count, generator=generator, device=generator.device)


def resume(generator: torch.Generator, state: Tensor) -> None:
    """Go on from what `get_state` gave; where that was on another kind of device, anew, by a seed made of it.

    A GPU draws by another algorithm than a CPU, and neither can take up the state of the other.
    """
    state = state.cpu()  # a map_location moves generator states too
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
        return
    kind = generator.device.type
    _log.warning("the checkpoint is of another kind of device than %s: random numbers go on from a new seed", kind)
    generator.manual_seed(zlib.crc32(state.numpy().tobytes()))
