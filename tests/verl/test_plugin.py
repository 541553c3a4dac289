"""What verl finds of us at `import verl`: next to nothing, unless a run asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points

from environment import HERE

WHAT_IS_IMPORTED = """
import sys
import verl
print(*sorted(name for name in sys.modules if name.startswith(("adaptive_warmup", "verl.trainer", "verl.workers"))))
"""


def python(code: str, **environment: str) -> str:
    """What a fresh Python prints last; AssertionError with all its output where it fails."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("VERL_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=known | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_the_entry_point_is_declared() -> None:
    assert [one.value for one in entry_points(group="verl.plugins", name="adaptive_warmup")] == [
        "adaptive_warmup.integrations.verl"
    ]


def test_import_verl_stays_light() -> None:
    assert python(WHAT_IS_IMPORTED).split() == [
        "adaptive_warmup", "adaptive_warmup.integrations", "adaptive_warmup.integrations.verl"
    ]  # fmt: skip


def test_a_run_that_asks_finds_the_trainer_and_the_engines() -> None:
    code = """
import verl
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.workers.engine import EngineRegistry
kinds = [EngineRegistry.get_engine_cls(kind, "fsdp2").__name__ for kind in ("language_model", "value_model")]
print(get_trainer_cls("adaptive_warmup").__name__, *kinds)
"""
    said = python(code, VERL_ENGINE_VENDOR="adaptive_warmup", VERL_ENGINE_DEVICE="cuda")
    assert said == "AdaptiveWarmupTrainer WarmedLanguageModel WarmedValueModel"


def test_the_configurations_of_search_r1_are_configurations_of_verl() -> None:
    code = f"""
import io, sys
from contextlib import redirect_stdout
from pathlib import Path
from hydra.core.global_hydra import GlobalHydra
import yaml
from verl.trainer.main_ppo import main

def shown(*arguments):
    sys.argv[1:] = [*arguments, "--cfg", "job"]
    GlobalHydra.instance().clear()
    with redirect_stdout(io.StringIO()) as out:
        main()
    return yaml.safe_load(out.getvalue())

def leaves(said, name=""):
    for key, value in said.items():
        yield from leaves(value, f"{{name}}{{key}}.") if isinstance(value, dict) and value else [f"{{name}}{{key}}"]

plain, folder = shown(), Path({str(HERE.parents[1] / "examples" / "search_r1")!r})
for path in sorted(folder.glob("*.yaml")):
    config = shown(f"--config-dir={{folder}}", f"--config-name={{path.stem}}")
    assert config["trainer"]["v1"]["trainer_mode"] == "adaptive_warmup"
    new = sorted(set(leaves(config)) - set(leaves(plain)))
    print(path.stem, *new)
    assert new == ["adaptive_warmup.log", "ray_kwargs.ray_init.runtime_env.env_vars.VERL_ENGINE_VENDOR"], new
print("all")
"""
    assert python(code) == "all"
