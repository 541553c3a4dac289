"""`AdaptiveWarmupCallback` measures the policy KL itself where the real `transformers.Trainer` has none to give."""

from __future__ import annotations

import copy
import gc
import json
import logging
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
)

from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from adaptive_warmup.probe import PolicyProbe
from tests.integrations.trainers import FLAT, PEAK, RAMP, Plant, Record, same, trainer, weights
from tests.processes import run_processes

WORDS = 16


def gpt(dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    drops = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    sizes = {"vocab_size": WORDS, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 1}
    return GPT2LMHeadModel(GPT2Config(**sizes, **drops, bos_token_id=0, eos_token_id=0))


def texts(count: int = 48, length: int = 8) -> list[dict[str, Tensor]]:
    ids = torch.randint(1, WORDS, (count, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in ids]


def steady(**settings: Any) -> PolicyProbe:
    """One that measures as often as it may, on all rows, whatever that costs."""
    return PolicyProbe(max_cost=None, **settings)


class Watch(TrainerCallback):
    """The real KL of every update on the rows of the first step, from the weights before and after it."""

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.kls = rows, list[float]()

    def _logits(self, model: Any) -> Tensor:
        training = model.training
        with torch.no_grad():
            logits = model.eval()(self.rows).logits[:, :-1]
        model.train(training)
        return logits

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self.before = self._logits(model)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        after = self._logits(model)
        self.kls.append(float(kl_divergence(Categorical(logits=self.before), Categorical(logits=after)).mean()))


class InOrder(Trainer):
    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def kls(record: Record) -> list[float | None]:
    return [signals.kl for signals in dict.fromkeys(record.signals) if signals]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_fourth_update_of_a_language_model_is_measured(tmp_path: Path, accumulate: int) -> None:
    data = texts()
    rows = torch.stack([row["input_ids"] for row in data[: 4 * accumulate]])  # of the first step, all micro-batches
    warmup, watch = AdaptiveWarmupCallback(4, probe=steady()), Watch(rows)
    record = Record(warmup)
    settings = {**FLAT, "gradient_accumulation_steps": accumulate, "max_steps": 9}
    trainer(tmp_path, [record, watch, warmup], cls=InOrder, model=gpt(0.3), data=data, **settings).train()
    seen = kls(record)
    assert [step for step, kl in enumerate(seen) if kl is not None] == [0, 4, 8]
    assert [seen[step] for step in (0, 4, 8)] == pytest.approx([watch.kls[step] for step in (0, 4, 8)], rel=1e-3)
    assert {s.kl_source for s in record.signals if s and s.kl} == {"training_probe"}
    # The first update, at a quarter of the peak, had this KL; the ceiling is where it would be .03.
    assert record.logged("adaptive_warmup/ceiling")[0] == pytest.approx(0.25 * (0.03 / watch.kls[0]) ** 0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("accumulate", "measured"),
    [
        (1, [0, 9]),  # a row of 8 tokens, run twice, is paid for by 2 % of 8.3 updates of 3 forwards of 4 such rows
        (2, [0, 5, 10]),
        (4, [0, 4, 8]),
    ],
)
def test_the_pace_follows_from_what_is_trained_on_and_not_from_what_is_evaluated(
    tmp_path: Path, accumulate: int, measured: list[int]
) -> None:
    warmup = AdaptiveWarmupCallback(4)
    record = Record(warmup)
    settings = {**FLAT, "gradient_accumulation_steps": accumulate, "eval_strategy": "steps", "eval_steps": 2}
    trainer(tmp_path, [record, warmup], model=gpt(), data=texts(), **settings).train()
    assert [step for step, kl in enumerate(kls(record)) if kl is not None] == measured


def test_it_is_on_by_default_and_stops_too_high_an_lr(tmp_path: Path) -> None:
    warmup = AdaptiveWarmupCallback(4)
    record = Record(warmup)
    trainer(tmp_path, [record, warmup], model=gpt(), data=texts(), learning_rate=1.0, **FLAT).train()
    assert any(kl is not None for kl in kls(record))
    assert max(record.lrs[1:]) < 0.5  # a ramp of four steps would be at the peak by now


def test_none_is_none(tmp_path: Path) -> None:
    warmup = AdaptiveWarmupCallback(4, probe=None)
    record = Record(warmup)
    trainer(tmp_path, [record, warmup], model=gpt(), data=texts(), learning_rate=1.0, **FLAT).train()
    assert record.lrs == RAMP
    assert set(kls(record)) == {None}


@pytest.mark.parametrize("bf16", [False, True])
def test_at_the_same_lrs_the_weights_are_the_same_to_the_bit(tmp_path: Path, bf16: bool) -> None:
    runs = []
    for probe in (None, steady(every=1)):
        warmup = AdaptiveWarmupCallback(1, probe=probe, target_kl=1e9)  # all is borne, with a KL and without
        record = Record(warmup)
        run = trainer(tmp_path, [record, warmup], model=gpt(0.3), data=texts(), bf16=bf16, **FLAT)
        run.train()
        runs.append((weights(run), record.lrs, kls(record)))
    assert runs[0][1] == runs[1][1]
    assert same(runs[0][0], runs[1][0])
    assert runs[0][2] == [None] * 12
    assert all(kl is not None and kl > 0 for kl in runs[1][2])


def test_a_host_that_reports_a_kl_of_its_own_needs_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    probe = steady(every=2)
    warmup = AdaptiveWarmupCallback(4, probe=probe, min_target_kl=0.01)
    record = Record(warmup)
    with caplog.at_level(logging.INFO, "adaptive_warmup"):
        trainer(
            tmp_path, [record, Plant(record, warmup, bears=0.3 * PEAK), warmup], model=gpt(), data=texts(), **FLAT
        ).train()
    assert {s.kl_source for s in record.signals if s} == {"post_update"}
    assert probe.off
    assert caplog.text.count("the policy probe is off: the host reports a post-update KL of its own") == 1
    assert record.lrs[-1] == pytest.approx(0.3 * PEAK, rel=0.02)


def test_after_handing_over_nothing_is_measured_any_more(tmp_path: Path) -> None:
    probe = steady(every=1)
    warmup = AdaptiveWarmupCallback(2, probe=probe, guard=False, target_kl=1e9)
    record = Record(warmup)
    trainer(tmp_path, [record, warmup], model=gpt(), data=texts(), **FLAT).train()
    assert [kl is not None for kl in kls(record)] == [True] + [False] * 11
    assert probe.off


def test_an_update_that_was_skipped_is_no_evidence(tmp_path: Path) -> None:
    class Breaks(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs) * (float("nan") if self.state.global_step == 1 else 1.0)

    warmup = AdaptiveWarmupCallback(4, probe=steady(every=1))
    record = Record(warmup)
    trainer(tmp_path, [record, warmup], cls=Breaks, model=gpt(), data=texts(), **FLAT).train()
    seen = kls(record)
    assert seen[1] is None  # of an update at a cut lr
    assert all(kl is not None and kl > 0 for i, kl in enumerate(seen) if i != 1)


def test_a_model_without_a_vocabulary_is_told_once_and_warms_up_as_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record, warmup = Record(), AdaptiveWarmupCallback(4)
    trainer(tmp_path, [record, warmup], **FLAT).train()
    assert record.lrs == pytest.approx([PEAK * up for up in RAMP])
    assert caplog.text.count("the policy probe cannot measure") == 1
    assert "observe(kl=...)" in caplog.text
    assert "probe=None" in caplog.text


def test_a_classifier_of_whole_texts_is_told_what_it_lacks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertForSequenceClassification(BertConfig(vocab_size=WORDS, num_labels=3, **sizes))
    data = [{"input_ids": text["input_ids"], "labels": i % 3} for i, text in enumerate(texts())]
    warmup = AdaptiveWarmupCallback(4, probe=steady(sequences=4))
    trainer(tmp_path, [warmup], model=model, data=data, **FLAT).train()
    words = "BertForSequenceClassification returns no logits [rows, positions, vocabulary] (found of shape [4, 3])"
    assert words in caplog.text
    assert caplog.text.count("the policy probe cannot measure") == 1


def test_what_is_kept_of_a_training_is_the_callback_and_no_model(tmp_path: Path) -> None:
    warmup = AdaptiveWarmupCallback(4)
    run = trainer(tmp_path, [warmup], model=gpt(), data=texts(), **FLAT)
    run.train()
    model, optimizer = weakref.ref(run.model), weakref.ref(run.optimizer.optimizer)
    told = warmup.decision, warmup.sources
    del run
    gc.collect()
    assert model() is None
    assert optimizer() is None
    assert told[0].ceiling is not None
    for kept in (warmup, copy.deepcopy(warmup), pickle.loads(pickle.dumps(warmup))):
        assert (kept.decision, kept.sources) == told


def test_a_trainer_that_shows_no_inputs_trains_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Own(Trainer):
        def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
            loss = model(**inputs).loss
            loss.backward()
            return loss.detach()

    record, warmup = Record(), AdaptiveWarmupCallback(4)
    trainer(tmp_path, [record, warmup], cls=Own, model=gpt(), data=texts(), **FLAT).train()
    assert record.lrs == pytest.approx([PEAK * up for up in RAMP])
    assert caplog.text.count("training_step does not call compute_loss") == 1


def test_training_twice_with_one_probe_is_measured_from_the_start_each_time(tmp_path: Path) -> None:
    warmup = AdaptiveWarmupCallback(4, probe=steady(every=8))
    record = Record(warmup)
    run = trainer(tmp_path, [record, warmup], model=gpt(), data=texts(), **FLAT)
    for _ in range(2):
        record.signals.clear()
        run.train()
        assert [step for step, kl in enumerate(kls(record)) if kl is not None] == [0, 8]


# --- Checkpoints (`test_contract.py` has the same of every trainer) ---


def halfway(folder: Path, **settings: Any) -> tuple[Trainer, Record]:
    warmup = AdaptiveWarmupCallback(4, target_kl=0.01)
    record = Record(warmup)
    settings = {**FLAT, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 6, **settings}
    return trainer(folder, [record, warmup], model=gpt(0.3), data=texts(), learning_rate=1.0, **settings), record


def test_the_rows_and_the_pace_are_in_the_checkpoint_and_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path) -> None:
    whole, record = halfway(tmp_path)
    whole.train()
    checkpoint = tmp_path / "checkpoint-6"
    rows = torch.load(checkpoint / "adaptive_warmup_probe_0.pt", weights_only=True)
    assert rows["inputs"]["input_ids"].shape == (1, 8)
    assert (checkpoint / "adaptive_warmup_probe_0.pt").stat().st_size < 10_000
    again, after = halfway(tmp_path)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert [step for step, kl in enumerate(kls(record)) if kl is not None] == [0, 5, 10]
    assert kls(after) == kls(record)[6:]
    assert after.lrs == record.lrs[6:]
    assert len(set(record.lrs)) > 3
    assert same(weights(again), weights(whole))


@pytest.mark.parametrize("lost", ["the state", "the rows"])
def test_a_checkpoint_that_lacks_what_the_probe_needs_is_told_once(
    tmp_path: Path, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    halfway(tmp_path)[0].train()
    (tmp_path / "checkpoint-6" / "adaptive_warmup_probe_0.pt").unlink()
    if lost == "the state":  # as before it was kept
        path = tmp_path / "checkpoint-6" / "trainer_state.json"
        state = json.loads(path.read_text())
        del state["stateful_callbacks"]["adaptive_warmup_probe"]
        path.write_text(json.dumps(state))
    again, after = halfway(tmp_path)
    with caplog.at_level(logging.INFO, "adaptive_warmup"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert caplog.text.count("new rows") == 1
    assert [6 + i for i, kl in enumerate(kls(after)) if kl is not None] == ([6, 11] if lost == "the state" else [10])


def test_one_that_has_retired_stays_so(tmp_path: Path) -> None:
    for resume in (None, str(tmp_path / "checkpoint-6")):
        probe = steady(every=1)
        warmup = AdaptiveWarmupCallback(4, probe=probe)
        record = Record(warmup)
        plant = Plant(record, warmup, bears=0.3 * PEAK)
        settings = {**FLAT, "save_strategy": "steps", "save_steps": 6}
        run = trainer(tmp_path, [record, plant, warmup], model=gpt(), data=texts(), **settings)
        run.train(resume_from_checkpoint=resume)
        assert probe.off
    assert probe.part is None  # it has not measured since


def test_what_is_no_probe_is_refused() -> None:
    with pytest.raises(TypeError, match="probe=True is unknown: use 'auto', None, or a PolicyProbe"):
        AdaptiveWarmupCallback(probe=True)  # type: ignore[arg-type]


def test_models_whose_labels_stand_where_they_are_predicted_are_measured_there(tmp_path: Path) -> None:
    """Labels of -100 everywhere else: were they taken as the next token's, nothing would count."""
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 16}
    masked = BertForMaskedLM(BertConfig(**sizes))
    tagger = BertForTokenClassification(BertConfig(**sizes, num_labels=WORDS))
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=WORDS, d_model=8, d_kv=8, d_ff=16, num_layers=1, num_heads=1, decoder_start_token_id=0)
    )
    first = [{**row, "labels": torch.where(torch.arange(8) == 0, row["input_ids"], -100)} for row in texts()]
    for model in (masked, tagger, t5):
        warmup = AdaptiveWarmupCallback(4)
        record = Record(warmup)
        trainer(tmp_path, [record, warmup], model=model, data=first, max_steps=2, **FLAT).train()
        assert kls(record)[0] is not None


# --- Reinforcement learning ---


class Rollouts(Trainer):
    """Inputs as TRL's GRPO and RLOO make them, new ones at every step; the first completion token is a tool's."""

    num_generations = 4

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        ids = inputs["input_ids"]
        mask = torch.ones(len(ids), 4, dtype=torch.long)
        self.completions.append(ids[:, 4:])
        return {
            "prompt_ids": ids[:, :4],
            "prompt_mask": mask.clone(),
            "completion_ids": ids[:, 4:],
            "completion_mask": mask,
            "tool_mask": (torch.arange(4) > 0).long().expand(len(ids), 4),
        }

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        return model(input_ids=ids, labels=ids).loss

    completions: list[Tensor]


def test_rollouts_are_measured_at_every_update_on_what_the_policy_sampled_in_it(tmp_path: Path) -> None:
    looked_at: list[Any] = []

    class Looks(PolicyProbe):
        def before(self, model: Any, batch: Any, tokens: int | None = None) -> None:
            looked_at.append(batch())
            super().before(model, batch, tokens)

    warmup = AdaptiveWarmupCallback(4, probe=Looks(every=1, max_cost=None))
    record = Record(warmup)
    run = trainer(tmp_path, [record, warmup], cls=Rollouts, model=gpt(), data=texts(), max_steps=4, **FLAT)
    run.completions = []
    run.train()
    assert None not in kls(record)
    for batch, completion in zip(looked_at, run.completions, strict=True):
        assert torch.equal(batch["labels"][:, 5:], completion[:, 1:])  # not the tool's token
        assert (batch["labels"][:, :5] == -100).all()


def test_by_default_rollouts_are_measured_at_every_update_that_pays_for_it(tmp_path: Path) -> None:
    """40 rows of 8 tokens pay 19.2 tokens run forward, and to look at a row before and after the update takes 16."""
    warmup = AdaptiveWarmupCallback(4)
    record = Record(warmup)
    rows = {"data": texts(160), "per_device_train_batch_size": 40}
    run = trainer(tmp_path, [record, warmup], cls=Rollouts, model=gpt(), max_steps=4, **rows, **FLAT)
    run.completions = []
    run.train()
    assert None not in kls(record)


def test_plain_training_bears_more_than_rollouts(tmp_path: Path) -> None:
    """And a target that is set is no other kind of target, so that to set the default changes nothing."""
    sources = []
    for cls, settings in ((Trainer, {}), (Rollouts, {}), (Trainer, {"target_kl": 0.01})):
        warmup = AdaptiveWarmupCallback(4, **settings)
        run = trainer(tmp_path, [warmup], cls=cls, model=gpt(), data=texts(), max_steps=1, **FLAT)
        run.completions = []
        run.train()
        assert warmup.regulator is not None
        assert warmup.regulator.signals is not None
        sources.append(warmup.regulator.signals.kl_source)
    assert sources == ["training_probe", "probe", "training_probe"]


# --- Several processes ---

_PROCESS = """
import json, sys
from pathlib import Path
from adaptive_warmup.integrations.huggingface import AdaptiveWarmupCallback
from tests.integrations.test_probing import gpt, kls, texts
from tests.integrations.trainers import FLAT, Record, trainer, weights

out = Path(sys.argv[1])
warmup = AdaptiveWarmupCallback(4)
record = Record(warmup)
data = {"model": gpt(0.3), "data": texts(96), "learning_rate": 0.3}
run = trainer(out, [record, warmup], ddp_backend="gloo", **data, **FLAT)
run.train()
told = {"lrs": record.lrs, "weights": [tensor.tolist() for tensor in weights(run)]}
(out / f"{run.args.process_index}.json").write_text(json.dumps(told))
"""


def test_processes_stay_together(tmp_path: Path) -> None:
    run_processes(_PROCESS, tmp_path, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert max(first["lrs"]) < 0.3  # a ramp of four steps would be there by now
