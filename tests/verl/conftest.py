"""These tests run in an environment of their own, with verl: `make test-verl`. Elsewhere they are left out."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

# As the workers have it, and before verl is imported; the tests of this folder import one another by plain names.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
collect_ignore_glob = [] if importlib.util.find_spec("verl") else ["test_*.py"]
