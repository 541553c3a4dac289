"""Adaptive warmup for verl 0.9, by its own extension points: a trainer, an engine, and this entry point of both.

`import verl` loads this module (entry-point group `verl.plugins`) in every process. It does nothing but where a run
asks for it, by verl's own choice of an engine, `VERL_ENGINE_VENDOR=adaptive_warmup`: then the trainer and the engine
are entered in verl's registries.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module

VENDOR = "adaptive_warmup"  # of the engine, and the trainer's mode

if os.environ.get("VERL_ENGINE_VENDOR") == VENDOR:
    try:
        for _part in ("engine", "trainer"):
            import_module(f"{__name__}.{_part}")
    except Exception as _error:  # verl says nothing of a plugin that fails
        logging.getLogger("adaptive_warmup").warning("no adaptive warmup in this verl: %r", _error)
        raise
