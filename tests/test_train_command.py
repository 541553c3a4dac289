"""`adaptive-warmup train`, as a user starts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from adaptive_warmup.cli import main
from adaptive_warmup.history import read
from tests.integrations.tiny import saved

QUICK = [
    "--per_device_train_batch_size", "4", "--max_steps", "2", "--max_completion_length", "6", "--use_cpu", "True",
    "--save_strategy", "no", "--learning_rate", "1e-3", "--logging_steps", "1", "--disable_tqdm", "True",
    "--dataloader_pin_memory", "False",
]  # fmt: skip


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"one {i}", "answer": str(i)}) + "\n" for i in range(12)))
    return path


def test_prompts_and_answers(tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    config = tmp_path / "run.yaml"
    config.write_text(yaml.dump({"model": saved(), "data": str(prompts), "reward": "contains", "max_steps": 9}))
    files = ["--config", str(config), "--eval_data", str(prompts), "--output_dir", str(out)]
    assert main(["train", *files, *QUICK]) == 0
    said = capsys.readouterr().out
    assert "objective/scores" in said
    assert f"saved in {out}" in said
    AutoModelForCausalLM.from_pretrained(out)
    assert len(read(out / "decisions.jsonl").steps) == 2  # the flag counts over the file
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert "eval_objective/scores" in history[-1]


def test_the_search_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ["--task", "search", "--size", "tiny", "--problems", "16", "--eval_problems", "4", "--lora_r", "2"]
    assert main(["train", *task, "--output_dir", str(tmp_path), *QUICK, "--max_completion_length", "40"]) == 0
    assert "eval_objective/scores" in capsys.readouterr().out
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_help_lists_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "--no-adaptive-warmup Sets adaptive_warmup to False." in " ".join(said.split())
    assert all(f"--{name}" in said for name in ("kl_coef", "cliprange", "task", "lora_r", "target_kl", "report_to"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "data=None and task=None: give one of the two"),
        (["--data", "x.jsonl"], "model=None: give the name or path of a model"),
        (["--data", "x.jsonl", "--model", "m"], "there is no 'x.jsonl'"),
        (["--task", "serch", "--model", "m"], "serch"),
        (["--task", "search", "--cliprange", "-1"], "cliprange=-1.0: give a positive, finite number"),
        (["--task", "serch", "--target_kl", "-1"], "target_kl=-1.0 must be a positive number"),  # before what is slow
        (["--config", "missing.yaml"], "there is no 'missing.yaml'"),
        (["--task", "search", "--outputdir", "x"], "--outputdir x is no option of `adaptive-warmup train --help`"),
    ],
)
def test_bad_input_is_two_and_one_line(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *options, "--use_cpu", "True"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_what_yaml_reads_as_none_and_as_false(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused for its data, not for its options."""
    config = tmp_path / "run.yaml"
    config.write_text("ddp_backend: null\nsave_strategy: no\nuse_cpu: true\n")
    assert main(["train", "--config", str(config)]) == 2
    assert "data=None and task=None" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"task: [search\n", b"task: \xff\n"])
def test_a_file_that_is_no_yaml_is_named(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.yaml"
    config.write_bytes(content)
    assert main(["train", "--config", str(config)]) == 2
    assert f"{config} cannot be read as YAML: " in capsys.readouterr().err


def test_an_unknown_key_of_the_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("task: search\nklcoef: 0.1\n")
    assert main(["train", "--config", str(config)]) == 2
    assert "klcoef, no option" in capsys.readouterr().err


def test_other_commands_still_refuse_what_they_do_not_know() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["advise", "--nonsense", "3"])
    assert ended.value.code == 2
