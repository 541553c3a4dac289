"""Builds the wheel and the sdist, and tries each as a user installs it: in a fresh environment, from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "dist"
PACKAGES = ("adaptive_warmup", "integrations")  # the second is shipped as a part of the first

SMOKE = """
import importlib.metadata, sys
from importlib.resources import files
from pathlib import Path
import adaptive_warmup
from adaptive_warmup.integrations import figures
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback

assert Path(adaptive_warmup.__file__).is_relative_to(sys.prefix), adaptive_warmup.__file__
assert importlib.metadata.version("adaptive-warmup") == adaptive_warmup.__version__
assert (files("adaptive_warmup") / "py.typed").is_file()
assert (files("adaptive_warmup.report") / "page.html").is_file()
assert figures.PREFIX == "adaptive_warmup/"
"""


def build() -> tuple[Path, Path]:
    """The wheel, which is made from the sdist, and the sdist."""
    for old in OUT.glob("*"):
        old.unlink()
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(OUT), str(ROOT)], check=True)
    return next(OUT.glob("*.whl")), next(OUT.glob("*.tar.gz"))


def check_contents(wheel: Path, sdist: Path) -> None:
    """All of our modules are in it, and no tests."""
    ours = {path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    shipped = {Path("adaptive_warmup") / path if path.parts[0] == "integrations" else path for path in ours}
    names = {Path(name) for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    extra = {Path("adaptive_warmup/py.typed"), Path("adaptive_warmup/report/page.html")}
    assert names == shipped | extra, sorted(names ^ (shipped | extra))
    with tarfile.open(sdist) as archive:
        packed = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    assert ours | {Path("LICENSE"), Path("README.md")} <= packed, sorted(ours - packed)
    assert not [path for path in packed if path.parts[:1] in (("tests",), ("benchmarks",))]


def check_installed(python: Path, folder: Path) -> None:
    """It is imported from the environment, the README's first example runs, and so does the command."""
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    command = python.with_name("adaptive-warmup")
    for run in (
        [python, "-c", SMOKE],
        [python, "-c", example[1]],
        [command, "--help"],
        [command, "advise", "--lr", "1e-6", "--total-steps", "305"],
    ):
        subprocess.run(run, check=True, cwd=folder)


def main() -> None:
    """Both, one after the other in the same environment."""
    wheel, sdist = build()
    check_contents(wheel, sdist)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "env", with_pip=True)
        python = folder / "env" / "bin" / "python"
        install = [python, "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([*install, f"{wheel}[trainer]"], check=True)
        check_installed(python, folder)
        subprocess.run([*install, "--no-deps", "--force-reinstall", str(sdist)], check=True)
        check_installed(python, folder)
    print(f"{wheel.name} and {sdist.name} hold what they should, and run where they are installed")


if __name__ == "__main__":
    main()
