"""`AdaptiveWarmupCallback` on two processes of the real Trainers: one decision for all, whatever each of them sees."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from transformers.distributed import DistributedConfig

from tests.integrations.trainers import STEPS
from tests.processes import run_processes

_TOLD = """
import json, sys
from dataclasses import asdict
from pathlib import Path
import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from tests.integrations.test_probing import kls
from tests.integrations.trainers import FLAT, Record, trainer

out = Path(sys.argv[1])

class Decisions(TrainerCallback):
    def __init__(self):
        self.seen = []
    def on_step_end(self, *args, **kwargs):
        self.seen.append(repr(warmup.decision))

def told(run, record, decisions):
    tensors = [p.full_tensor() if isinstance(p, DTensor) else p for p in run.model.parameters()]
    return {
        "lrs": record.lrs,
        "decisions": decisions.seen,
        "kls": kls(record) if run.args.process_index == 0 else None,  # it alone reads what is observed
        "norms": record.logged("grad_norm"),
        "weights": [tensor.tolist() for tensor in tensors],
        "sharded": all(isinstance(p, DTensor) for p in run.model.parameters()),
    }

def tell(run, **found):
    (out / f"{run.args.process_index}.json").write_text(json.dumps(found))
"""


SAME = ("lrs", "decisions", "norms", "weights")


def both(script: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    run_processes(_TOLD + script, folder, folder)
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    return first, second


_GRPO = """
from tests.integrations.trl_trainers import run

class Differs(TrainerCallback):
    # The second process reports what the first one does not see: nothing good, and for a while nothing that is finite.
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if args.process_index and state.global_step % 3:
            warmup.observe(kl=5.0, task_reward=float("nan") if state.global_step < 5 else -9.0)

warmup = AdaptiveWarmupCallback(4, target_kl=0.001)
record = Record(warmup)
settings = {"beta": 0.0, "max_steps": 12, "learning_rate": 0.01, "ddp_backend": "gloo", **FLAT}
decisions = Decisions()
made = run("GRPO", out, [record, Differs(), warmup, decisions], **settings)
made.train()
tell(made, **told(made, record, decisions))
"""


def test_grpo_under_ddp_goes_by_what_the_first_process_sees(tmp_path: Path) -> None:
    first, second = both(_GRPO, tmp_path)
    assert len(first["lrs"]) == STEPS
    for what in SAME:
        assert first[what] == second[what]
    assert sum(kl is not None for kl in first["kls"]) > 1  # the probe of all, which the second one's KL does not end
    assert 5.0 not in first["kls"]
    assert len(set(first["lrs"])) > 2


_LOADED = """
from torch import distributed
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.distributed import DistributedConfig
from tests.integrations.test_probing import texts

distributed.init_process_group("gloo")
sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
sizes |= {"vocab_size": 16, "num_key_value_heads": 1, "tie_word_embeddings": False}
if distributed.get_rank() == 0:
    Qwen2ForCausalLM(Qwen2Config(**sizes, pad_token_id=0)).save_pretrained(out / "model")
distributed.barrier()
model = Qwen2ForCausalLM.from_pretrained(out / "model", distributed_config=DistributedConfig(fsdp_size=2))
warmup = AdaptiveWarmupCallback(4, read="late", target_kl=0.003)  # as on GPUs, which FSDP is for
record, decisions = Record(warmup), Decisions()
settings = {"model": model, "data": texts(96), "learning_rate": 0.03, "ddp_backend": "gloo", **FLAT}
run = trainer(out, [record, warmup, decisions], **settings)
run.train()
tell(run, **told(run, record, decisions))
"""


@pytest.mark.skipif(
    "fsdp_size" not in signature(DistributedConfig).parameters, reason="this transformers does not shard as it loads"
)
def test_fsdp2_of_a_model_that_is_sharded_as_it_is_loaded(tmp_path: Path) -> None:
    first, second = both(_LOADED, tmp_path)
    assert first["sharded"]
    for what in SAME:
        assert first[what] == second[what]
    assert len(first["lrs"]) == STEPS
    assert sum(kl is not None and kl > 0 for kl in first["kls"]) > 1
