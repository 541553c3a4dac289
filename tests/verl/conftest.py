"""These tests run in an environment of their own, with verl: `make test-verl`. Elsewhere they are left out."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

_found = importlib.util.find_spec("verl")
if _found and _found.origin:  # this folder itself may look like a package of that name
    # The tests import one another by plain names: verl brings a package called `tests` along.
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    from environment import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    collect_ignore_glob: list[str] = []
else:
    collect_ignore_glob = ["test_*.py"]
