"""Tasks of the reasoning-gym package as environments."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from adaptive_warmup.ppo.tasks import ReasoningGymTask, Task, make
from adaptive_warmup.ppo.tasks.tokenizer import train_tokenizer


@pytest.mark.parametrize("name", ["number_sorting", "chain_sum", "spell_backward", "gcd", "word_ladder"])
def test_right_answers_score_one_and_others_less(name: str) -> None:
    task: Task = make(name)
    for problem in task.sample(5, seed=0, split="eval"):
        assert task.score(problem, problem.answer["answer"]) == 1.0
        assert task.score(problem, f" {problem.answer['answer']}\n") == 1.0
        assert task.score(problem, "") < 1.0
        assert task.reply(problem, "anything") is None


def test_a_hand_checked_problem() -> None:
    task = ReasoningGymTask("number_sorting")
    problem = next(p for p in task.sample(20, seed=0) if "ascending" in p.prompt)
    numbers = sorted(float(n) for n in problem.prompt.split(": ")[1].split(","))
    assert len(numbers) == 3
    assert problem.prompt.count("\n") == 1
    assert task.score(problem, str([str(n) for n in numbers])) == 1.0
    assert task.score(problem, str([str(n + 5) for n in numbers])) == 0.0


def test_a_response_that_the_package_trips_over_scores_zero() -> None:
    task = make("prime_factorization")
    assert task.score(task.sample(1, seed=0)[0], "x") == 0.0


def test_sampling_is_repeatable_and_the_splits_are_apart() -> None:
    task = make("spell_backward", min_word_len=3, max_word_len=10)
    assert task.sample(10, seed=1) == task.sample(10, seed=1)
    assert task.sample(10, seed=1) != task.sample(10, seed=2)
    indices = {
        split: {p.answer["metadata"]["source_index"] for p in task.sample(200, seed=3, split=split)}
        for split in ("train", "eval")
    }
    assert {index % 2 for index in indices["train"]} == {0}
    assert {index % 2 for index in indices["eval"]} == {1}


def test_demonstrations_are_right_as_often_as_asked() -> None:
    task = make("number_sorting", mistakes=0.4)

    def share_right(**perfect: bool) -> float:
        demos = task.demonstrations(1000, seed=1, **perfect)
        problems = {p.prompt: p for p in task.sample(20_000, seed=0)}
        scored = [task.score(problems[d.prompt], d.response) for d in demos if d.prompt in problems]
        assert len(scored) > 500
        return sum(scored) / len(scored)

    assert share_right(perfect=True) == 1.0
    assert 0.55 < share_right() < 0.75  # a swap may by chance be right, within the package's tolerance
    assert task.demonstrations(9, seed=2) == task.demonstrations(9, seed=2)


def test_parameters_reach_the_package_and_are_in_the_name() -> None:
    task = make("number_sorting", min_numbers=5, max_numbers=5)
    assert len(eval(task.sample(1, seed=0)[0].answer["answer"])) == 5
    assert task.name != make("number_sorting").name


@pytest.mark.parametrize(
    ("name", "parameters", "told"),
    [
        ("number_sortin", {}, "number_sorting"),
        ("serach", {}, "search"),
        ("nothing like it", {}, "one of reasoning-gym's, such as chain_sum, number_sorting, spell_backward$"),
        ("chain_sum", {"no_such": 1}, "no_such"),
        ("chain_sum", {"min_terms": 9}, "max_terms"),
        ("chain_sum", {"mistakes": 2.0}, "2.0"),
    ],
)
def test_what_cannot_be_made_is_told_with_the_remedy(name: str, parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make(name, **parameters)


def test_a_task_without_answers_cannot_be_demonstrated() -> None:
    with pytest.raises(ValueError, match="choose another task"):
        make("rush_hour").demonstrations(3, seed=0)


def test_the_missing_package_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r'pip install "adaptive-warmup\[gym\]"'):
        make("chain_sum")


def test_digits_are_tokens_of_their_own() -> None:
    task = make("number_sorting")
    tokenizer = train_tokenizer(task.corpus_texts(), task.tags, 512)
    tokens = tokenizer.tokenize("['57.0', '46.0']")
    assert [token for token in tokens if token.isdigit()] == ["5", "7", "0", "4", "6", "0"]
    assert not any(len(token) > 1 and any(c.isdigit() for c in token) for token in tokenizer.get_vocab())
