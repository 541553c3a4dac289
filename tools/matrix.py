"""Runs the core of the tests at the lower ends of what pyproject.toml allows: `python -m tools.matrix [ROW ...]`.

A row is an environment of its own that has the row's packages, and borrows the rest from the one that runs this: torch
is thus the same in all. Results are kept in `tools/matrix.json`, a row each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = Path(__file__).with_suffix(".json")
ROWS = {  # what is installed, and what is run
    "lower transformers, accelerate": (
        ("transformers==5.3.0", "accelerate==1.1.0"),
        ("tests/integrations/test_huggingface.py", "tests/faults/test_trainer.py"),
    ),
    "lower TRL": (("trl==1.16.0", "transformers==5.3.0"), ("tests/integrations/test_trainer_signals.py",)),
}


def environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """Its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    (Path(own) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def tried(packages: tuple[str, ...], tests: tuple[str, ...]) -> dict[str, object]:
    """One row: with what, and pytest's last line."""
    with tempfile.TemporaryDirectory() as name:
        python = environment(Path(name), packages)
        found = "import importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in "
        names = [package.split("==")[0] for package in packages] + ["torch"]
        versions = subprocess.run(
            [python, "-c", f"{found}{names!r}), sep=', ')"], check=True, capture_output=True, text=True
        )
        ran = subprocess.run(
            [python, "-m", "pytest", "-q", "-n", "0", *tests],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, capture_output=True, text=True,
        )  # fmt: skip
    print(ran.stdout[-3000:], ran.stderr[-2000:])
    last = ran.stdout.strip().splitlines()[-1] if ran.stdout.strip() else ran.stderr[-200:]
    return {"with": versions.stdout.strip(), "tests": list(tests), "passed": ran.returncode == 0, "said": last}


def main() -> None:
    """Those that are named, or all."""
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    for row in sys.argv[1:] or ROWS:
        kept[row] = tried(*ROWS[row])
        KEPT.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    sys.exit(not all(row["passed"] for row in kept.values()))


if __name__ == "__main__":
    main()
