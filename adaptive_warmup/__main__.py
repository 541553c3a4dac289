"""`python -m adaptive_warmup`: the command line."""

from __future__ import annotations

import sys

from adaptive_warmup.cli import main

if __name__ == "__main__":
    sys.exit(main())
