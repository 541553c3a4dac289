"""`PolicyProbe`: exact, without a trace in the training, within its time and memory."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from transformers import GPT2Config, GPT2LMHeadModel

from adaptive_warmup import AdaptiveWarmup, predictions
from adaptive_warmup.predictions import divergence
from adaptive_warmup.probe import PolicyProbe
from tests.optimizers import optimizer_of
from tests.processes import run_processes


class Coin(nn.Module):
    """The same odds at every position, whatever came before: the least that has a vocabulary."""

    def __init__(self, heads: float = 0.5) -> None:
        super().__init__()
        self.odds = nn.Parameter(torch.tensor([heads, 1.0 - heads]).log())

    def forward(self, ids: Tensor) -> Tensor:
        return self.odds.expand(*ids.shape, 2)

    def becomes(self, heads: float) -> None:
        self.odds.data = torch.tensor([heads, 1.0 - heads]).log()


def gpt(dropout: float = 0.0, **settings: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, **settings}
    drops = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    return GPT2LMHeadModel(GPT2Config(**sizes, **drops, bos_token_id=0, eos_token_id=0)).train()


def tokens(rows: int = 8, length: int = 12, seed: int = 0) -> Tensor:
    return torch.randint(1, 16, (rows, length), generator=torch.Generator().manual_seed(seed))


def nudge(model: nn.Module, size: float = 0.02) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=size)


def measured(model: nn.Module, batch: Any, update: Callable[[nn.Module], None] = nudge, **settings: Any) -> float:
    probe = PolicyProbe(max_cost=None, **settings)
    probe.before(model, batch)
    update(model)
    kl = probe.after(model)
    assert kl is not None
    return kl


# --- What it measures ---


def test_a_coin_by_hand() -> None:
    coin = Coin(0.5)
    kl = measured(coin, tokens(), lambda _: coin.becomes(0.9))
    assert kl == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), rel=1e-6)  # .511 nats
    assert measured(coin, tokens(), lambda _: coin.becomes(0.5)) == pytest.approx(
        0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), rel=1e-6
    )  # and the other way round .368


@given(
    positions=st.integers(1, 150),
    words=st.integers(2, 9),
    scale=st.floats(0.01, 8.0),
    chunk=st.sampled_from([1, 7, 64]),
)
def test_exact_and_the_same_in_chunks_of_any_size(positions: int, words: int, scale: float, chunk: int) -> None:
    generator = torch.Generator().manual_seed(positions)
    before, after = scale * torch.randn(2, 1, positions, words, generator=generator)
    counted = torch.rand(1, positions, generator=generator) < 0.7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictions, "_CHUNK", chunk)
        total, count = divergence(before, after, counted)
    exact = kl_divergence(Categorical(logits=before.double()), Categorical(logits=after.double()))
    assert count == counted.sum()
    assert float(total) == pytest.approx(float(exact[counted].sum()), rel=1e-4, abs=1e-5)


def test_a_word_that_is_ruled_out_adds_nothing_but_a_broken_model_shows() -> None:
    counted = torch.ones(1, 1, dtype=torch.bool)
    fair, ruled_out = torch.tensor([[[0.0, 0.0, -math.inf]]]), torch.tensor([[[math.log(9.0), 0.0, -math.inf]]])
    assert float(divergence(fair, ruled_out, counted)[0]) == pytest.approx(0.5 * math.log(25 / 9))
    assert math.isnan(float(divergence(fair, torch.full((1, 1, 3), math.nan), counted)[0]))
    assert float(divergence(fair, torch.full((1, 1, 3), math.nan), ~counted)[0]) == 0.0  # at padding it may be


def test_it_is_the_kl_of_the_models_own_predictions() -> None:
    model, batch = gpt(), {"input_ids": tokens(), "labels": tokens()}
    before = model.eval()(batch["input_ids"]).logits.detach()
    kl = measured(model.train(), batch)
    after = model.eval()(batch["input_ids"]).logits.detach()
    exact = kl_divergence(Categorical(logits=before), Categorical(logits=after))
    assert kl == pytest.approx(float(exact[:, :-1].mean()), rel=1e-4)  # what follows the last token has no label


def test_only_labelled_tokens_count_and_padding_on_either_side_changes_nothing() -> None:
    ids = tokens(4, 10)
    labels = ids.clone()
    labels[:, :6] = -100  # a prompt
    plain = measured(gpt(), {"input_ids": ids, "labels": labels})
    assert plain != pytest.approx(measured(gpt(), {"input_ids": ids, "labels": ids}), rel=1e-3)
    before, after = gpt(), gpt()
    nudge(after)
    logits = [model.eval()(ids).logits[:, 5:9] for model in (before, after)]  # the predictions of tokens 6 to 9
    exact = kl_divergence(*(Categorical(logits=each) for each in logits)).mean()
    assert plain == pytest.approx(exact.item(), rel=1e-4)
    for where in ((0, 3), (3, 0)):
        padded = {
            "input_ids": nn.functional.pad(ids, where),
            "attention_mask": nn.functional.pad(torch.ones_like(ids), where),
            "labels": nn.functional.pad(labels, where, value=-100),
        }
        padded["position_ids"] = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
        assert measured(gpt(), padded) == pytest.approx(plain, rel=1e-4)
        del padded["labels"]
        everything = measured(gpt(), {"input_ids": ids, "labels": ids})
        assert measured(gpt(), padded) == pytest.approx(everything, rel=1e-4)  # then the mask tells


def test_a_broken_model_reads_nan_which_is_for_the_controller_to_name() -> None:
    coin = Coin()
    assert math.isnan(measured(coin, tokens(), lambda _: coin.becomes(math.nan)))


def test_a_batch_without_a_label_gives_no_kl_and_the_next_one_does() -> None:
    coin, probe, ids = Coin(), PolicyProbe(every=1, max_cost=None), tokens()
    for label, expected in ((-100, type(None)), (1, float)):
        probe.before(coin, {"ids": ids, "labels": torch.full_like(ids, label)})
        assert isinstance(probe.after(coin), expected)


# --- What it leaves alone ---


def trained(probe: PolicyProbe | None, steps: int = 5, device: torch.device | str = "cpu", **kind: Any) -> list[Tensor]:
    """The weights after some updates with dropout, by an AdamW of that kind."""
    model, ids = gpt(dropout=0.3).to(device), tokens().to(device)
    batch = {"input_ids": ids, "labels": ids}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, **kind)
    for _ in range(steps):
        model(**batch).loss.backward()
        if probe:
            probe.before(model, batch)
        optimizer.step()
        optimizer.zero_grad()
        if probe:
            assert probe.after(model)
            assert all(module.training for module in model.modules())
    return list(model.state_dict().values())


def test_training_with_it_gives_the_same_weights_to_the_bit() -> None:
    probed = trained(PolicyProbe(every=1, max_cost=None))
    assert all(torch.equal(a, b) for a, b in zip(probed, trained(None), strict=True))


def test_flags_and_random_numbers_stay_as_they_are_also_where_a_model_cannot_be_measured() -> None:
    class Rude(nn.Module):
        """Draws random numbers, overrides train(), and has a part that is frozen in eval mode."""

        def __init__(self, breaks: bool) -> None:
            super().__init__()
            self.body, self.frozen, self.breaks = nn.Linear(1, 3), nn.BatchNorm1d(3).eval(), breaks

        def train(self, mode: bool = True) -> Any:
            raise AssertionError("not to be called")

        def forward(self, x: Tensor) -> Tensor:
            torch.rand(3)
            assert not any(module.training for module in self.modules())
            if self.breaks:
                raise RuntimeError("out of memory")
            return self.body(x)

    for breaks in (False, True):
        model, state = Rude(breaks), torch.get_rng_state()
        flags, probe = [module.training for module in model.modules()], PolicyProbe()
        probe.before(model, torch.zeros(2, 4, 1))
        assert probe.after(model) == (None if breaks else 0.0)
        assert [module.training for module in model.modules()] == flags == [True, True, False]
        assert torch.equal(torch.get_rng_state(), state)


def test_dropout_and_a_skipped_update_read_exactly_nothing_and_the_law_takes_no_notice() -> None:
    kl = measured(gpt(dropout=0.5), {"input_ids": tokens()}, lambda _: None)
    assert kl == 0.0
    schedulers = [AdaptiveWarmup(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 10) for _ in range(2)]
    schedulers[0].observe(kl=kl, kl_source="probe")
    schedulers[1].observe(kl=None, kl_source="probe")  # between two measurements
    for scheduler in schedulers:
        scheduler.optimizer.step()
        scheduler.step()
    assert schedulers[0].decision == schedulers[1].decision
    assert schedulers[0].get_last_lr() == pytest.approx([0.2])


def test_under_an_open_autocast_the_update_is_seen_and_the_gradient_flows() -> None:
    """Autocast caches its casts: one made before the update would hide it, one made here would have no gradient."""
    model, batch, probe = gpt(), {"input_ids": tokens(), "labels": tokens()}, PolicyProbe(max_cost=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        probe.before(model, batch)
        model(**batch).loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        kl = probe.after(model)
    assert kl is not None
    assert kl > 0.01
    full = gpt()
    full(**batch).loss.backward()
    assert kl == pytest.approx(
        measured(full, batch, lambda model: torch.optim.SGD(model.parameters(), lr=1.0).step()), rel=0.1
    )


def test_a_model_in_bf16_reads_within_its_floor() -> None:
    batch = {"input_ids": tokens()}
    for size in (0.001, 0.02):
        true = measured(gpt(), batch, lambda model, size=size: nudge(model, size))
        rounded = measured(gpt().bfloat16(), batch, lambda model, size=size: nudge(model, size))
        assert abs(rounded - true) < 1e-4 + 0.1 * true


def test_adapters() -> None:
    model = peft.get_peft_model(
        gpt(), peft.LoraConfig(target_modules=["c_attn"], lora_dropout=0.5, fan_in_fan_out=True)
    )
    batch, probe = {"input_ids": tokens(), "labels": tokens()}, PolicyProbe(positions=24, max_cost=None)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=300.0)
    before = model.eval()(**batch).logits
    model.train()(**batch).loss.backward()
    probe.before(model, batch)
    optimizer.step()
    kl = probe.after(model)
    exact = kl_divergence(Categorical(logits=before), Categorical(logits=model.eval()(**batch).logits))
    assert kl == pytest.approx(exact[:, [0, 3, 7]].mean().item(), rel=1e-3)  # 3 of 11 positions, evenly spread
    assert kl > 0.0
    assert probe.memory == 8 * 3 * 16 * 4  # so the heads of the other positions were never computed


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    ],
)
def test_virtual_tokens_are_no_positions_of_the_batch(config: Any) -> None:
    """Prompt tuning puts them before the batch's, a prefix does not."""
    model = peft.get_peft_model(gpt(), config)
    batch = {"input_ids": tokens(), "attention_mask": torch.ones_like(tokens()), "labels": tokens()}
    part = predictions.excerpt(batch, 8, 24, 512, True)
    whole = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = whole[:, -tokens().shape[1] :][:, part.positions_P]
    torch.testing.assert_close(predictions.predictions(model, part), expected, atol=1e-5, rtol=1e-5)


def test_graphs_of_a_model_compiled_in_place_are_left_alone() -> None:
    model, graphs = gpt(), list[Any]()

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model.compile(backend=count)
    batch = {"input_ids": tokens(), "labels": tokens()}
    model(**batch).loss.backward()
    assert (known := len(graphs)) > 0
    predictions.predictions(model, predictions.excerpt(batch, 8, 24, 512, True))
    assert len(graphs) == known
    model(**batch).loss.backward()
    assert len(graphs) == known  # and it is compiled still, not anew


# --- What it costs ---


class Counting(Coin):
    """Keeps the shapes that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, ids: Tensor) -> Tensor:
        self.shapes.append(tuple(ids.shape))
        return super().forward(ids)


def paced(trained: Iterable[int | None], shape: tuple[int, int] = (32, 10), **settings: Any) -> dict[int, int]:
    """The rows that were looked at in each update that was measured; `trained` are the tokens of all updates."""
    probe, model, rows = PolicyProbe(**settings), Counting(), {}
    for number, count in enumerate(trained):
        probe.before(model, tokens(*shape), count)
        if probe.after(model) is not None:
            assert model.shapes[-1] == model.shapes[-2]
            rows[number] = model.shapes[-1][0]
    return rows


@pytest.mark.parametrize(
    ("trained", "rows", "gap"),
    [
        (2000, 8, 4),  # 2 % of 3 forwards of 2000 tokens, four times: 480; 2 forwards of 8 rows of 10 tokens: 160
        (None, 3, 4),  # as many as the batch has, 320: 76.8 pays for 3 rows of 10 tokens, twice
        (100, 1, 4),  # 24 pays for one
        (50, 1, 7),  # 20 is paid for by 6.7 updates, of 3 each
        (10, 1, 34),
    ],
)
def test_what_is_dear_looks_at_fewer_rows_and_then_less_often(trained: int | None, rows: int, gap: int) -> None:
    assert paced([trained] * 120) == dict.fromkeys(range(0, 120, gap), rows)


def test_what_shorter_batches_have_not_paid_for_is_paid_for_later() -> None:
    """Of 100 tokens an update pays 6. The 160 of the first measurement, less four times 6, and the 20 of the second are
    26 updates; the third, of 20, is paid for within four.
    """
    assert paced([10_000] + [100] * 45) == {0: 8, 4: 1, 30: 1, 34: 1, 38: 1, 42: 1}


def test_rollouts_may_be_measured_at_every_update_and_lengths_are_cut() -> None:
    assert paced([10_000] * 3, every=1) == {0: 8, 1: 8, 2: 8}
    assert paced([500] * 3, every=1) == {0: 1, 1: 1, 2: 1}  # 30 pays for one row of 10 tokens, twice
    assert paced([1000] * 3, (32, 50), every=1, length=10) == {0: 3, 1: 3, 2: 3}  # and of 50, 10 are run


def test_without_a_limit_the_tokens_do_not_matter() -> None:
    assert paced([1] * 20, max_cost=None) == dict.fromkeys((0, 4, 8, 12, 16), 8)


@settings(max_examples=25)
@given(
    trained=st.lists(st.integers(20, 3000), min_size=1, max_size=12),
    width=st.integers(2, 40),
    every=st.integers(1, 5),
    cost=st.floats(0.005, 0.5),
)
def test_the_cost_stays_within_its_share_whatever_the_batches(
    trained: list[int], width: int, every: int, cost: float
) -> None:
    counts = (40 * trained)[:120]
    spent = {at: 2 * rows * width for at, rows in paced(counts, (32, width), every=every, max_cost=cost).items()}
    for at in spent:  # the latest and the one before it may not have been paid for yet: batches may get shorter
        done = [spent[earlier] for earlier in spent if earlier < at]
        assert sum(done) <= cost * 3 * sum(counts[: at + 1]) + 2 * max(spent.values())
    if len(trained) == 1:
        assert all(sum(s for e, s in spent.items() if e < at) <= cost * 3 * sum(counts[: at + 1]) for at in spent)
    assert all(after - before >= every for before, after in pairwise(spent))


@settings(max_examples=25)
@given(st.lists(st.integers(20, 3000), min_size=8, max_size=30), st.integers(1, 7))
def test_it_goes_on_from_its_state_as_if_nothing_had_been(trained: list[int], at: int) -> None:
    def run(counts: list[int], probe: PolicyProbe) -> list[tuple[float | None, dict[str, Any]]]:
        seen = []
        for number in counts:
            model = Coin()
            probe.before(model, tokens(32), number)
            model.becomes(1.0 / (2 + number))
            seen.append((probe.after(model), probe.state_dict()))
        return seen

    first, second = PolicyProbe(), PolicyProbe()
    whole = run(trained[:at], first)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert run(trained[at:], second) == run(trained, PolicyProbe())[at:]
    assert whole == run(trained, PolicyProbe())[:at]


def test_the_state_of_one_that_is_off_is_off_and_a_damaged_one_is_refused() -> None:
    probe, other = PolicyProbe(), PolicyProbe()
    probe.before(Blind(), {"input_ids": tokens()})
    probe.after(Blind())
    other.load_state_dict(probe.state_dict())
    assert other.off
    with pytest.raises(ValueError, match="the adaptive_warmup state is damaged"):
        PolicyProbe().load_state_dict({**probe.state_dict(), "off": False})
    with pytest.raises(ValueError, match="reads states of version"):
        PolicyProbe().load_state_dict({"off": False})


def test_the_same_part_can_be_looked_at_again() -> None:
    probe, model, updates = PolicyProbe(every=1, max_cost=None), Counting(), []
    for number in range(3):
        probe.before(model, probe.part or tokens(32, seed=number))
        updates.append(probe.part)
        assert probe.after(model) == 0.0
    assert updates[0] is updates[2]
    assert updates[0] is not None
    assert torch.equal(updates[0].inputs["ids"], tokens(32)[::4])


@given(rows=st.integers(1, 40), length=st.integers(2, 40), sequences=st.integers(1, 8), positions=st.integers(8, 100))
def test_memory_is_bounded(rows: int, length: int, sequences: int, positions: int) -> None:
    probe, coin = PolicyProbe(sequences, positions, length=20, max_cost=None), Counting()
    probe.before(coin, tokens(rows, length))
    assert probe.after(coin) == 0.0
    assert 0 < probe.memory <= positions * 2 * 4  # positions x vocabulary x bytes
    assert all(shape[0] <= sequences and shape[1] <= 20 for shape in coin.shapes)


# --- Several processes ---

_PROCESS = """
import json, sys
import torch
from pathlib import Path
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from adaptive_warmup.probe import PolicyProbe
from tests.test_probe import gpt, tokens

distributed.init_process_group("gloo")
rank, found = distributed.get_rank(), {}
ids = tokens()[4 * rank : 4 * rank + 4]
for kind in ("ddp", "fsdp2"):
    model = gpt(dropout=0.3)
    if kind == "ddp":
        model = DistributedDataParallel(model)
    else:
        for block in model.transformer.h:
            fully_shard(block)
        fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    # By its own tokens the second one would measure at every update; the first one's pay for one in three.
    probe = PolicyProbe(every=1)
    kls = []
    for step in range(12):
        torch.manual_seed(10 * step + rank)
        model(input_ids=ids, labels=ids).loss.backward()
        probe.before(model, {"input_ids": ids, "labels": ids}, tokens=10**5 if rank else 160)
        optimizer.step()
        optimizer.zero_grad()
        kls.append(probe.after(model))
        if rank == 1 and step == 4:
            probe.retire("rank 1 has seen enough")
    sharded = [isinstance(p, DTensor) for p in model.parameters()]
    found[kind] = {"kls": kls, "off": probe.off, "sharded": sharded}
(Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(found))
distributed.destroy_process_group()
"""


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="FSDP2 of this torch is not for CPUs")
def test_processes_measure_the_mean_over_all_sequences_at_the_first_ones_pace(tmp_path: Path) -> None:
    run_processes(_PROCESS, tmp_path, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["ddp"]["off"]
    assert first["fsdp2"]["off"]
    kls = [[kl for kl in first[kind]["kls"] if kl is not None] for kind in ("ddp", "fsdp2")]
    assert kls[0] == pytest.approx(kls[1], rel=1e-4)
    assert all(first["fsdp2"]["sharded"])  # as they were before
    measured_at = [step for step, kl in enumerate(first["ddp"]["kls"]) if kl is not None]
    assert measured_at == [0, 3, 6]  # and at the last one they agree to stop


# --- What it refuses ---


class Blind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"loss": self.weight.sum()}


def test_a_model_without_logits_is_told_once_and_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    model, probe = Blind(), PolicyProbe(every=1)
    for _ in range(3):
        probe.before(model, {"input_ids": tokens()})
        assert probe.after(model) is None
    assert probe.off
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    for words in ("Blind returns no logits [rows, positions, vocabulary]", "observe(kl=...)", "probe=None"):
        assert words in warning


@pytest.mark.parametrize(
    ("model", "batch", "words"),
    [
        (nn.Linear(3, 4), torch.zeros(2, 3), "found of shape [1, 4]"),
        (gpt(), {"text": ["a"]}, "no tensor [rows, tokens] among text"),
        (gpt(), {"input_ids": 9 * tokens()}, "IndexError"),
    ],
)
def test_what_it_cannot_read_turns_it_off(model: nn.Module, batch: Any, words: str, caplog: Any) -> None:
    probe = PolicyProbe()
    probe.before(model, batch)
    assert probe.after(model) is None
    assert probe.off
    assert words in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"sequences": 0},
        {"positions": -1},
        {"length": True},
        {"every": 2.5},
        {"max_cost": 0.0},
        {"max_cost": 2},
        {"max_cost": "2%"},
    ],
)
def test_settings_out_of_range_are_quoted(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name}={value!r} must be"):
        PolicyProbe(**settings)


def test_what_is_no_model_is_refused() -> None:
    probe = PolicyProbe()
    with pytest.raises(TypeError, match=r"before\(SGD\(\.\.\.\), \.\.\.\): give the torch model .*, as trainer\.model"):
        probe.before(optimizer_of(0.1), torch.zeros(2, 3, dtype=torch.long))  # type: ignore[arg-type]
    assert not probe.off


def test_a_model_without_logits_is_told_what_it_should_return(caplog: pytest.LogCaptureFixture) -> None:
    class Scores(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return input_ids.float()

    probe, model = PolicyProbe(), Scores()
    probe.before(model, torch.zeros(2, 3, dtype=torch.long))
    assert probe.after(model) is None
    assert probe.off
    assert "Scores returns no logits [rows, positions, vocabulary] (found of shape [1, 3]): have its" in caplog.text
    assert "report a KL of your own by observe(kl=...), or go without (probe=None)" in caplog.text
