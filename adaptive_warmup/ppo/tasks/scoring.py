"""Reading a response and comparing its answer, as in Search-R1."""

from __future__ import annotations

import re
import string

SEARCH = re.compile(r"<search>([^<]*)</search>\s*$")
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
TURN = r"<search>[^<]+</search>\s*<information>[^<]*</information>\s*"
WELL_FORMED = re.compile(rf"({TURN})*<answer>[^<]+</answer>\s*")
ARTICLE = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (Rajpurkar et al., SQuAD, 2016)."""
    return " ".join(ARTICLE.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def last_query(response: str) -> str | None:
    """The query that the response ends with, or None where it ends with none."""
    match = SEARCH.search(response)
    return match and match[1].strip()


def first_answer(response: str) -> str | None:
    """The answer that ended the episode: the first one closed. What follows it is not read."""
    match = ANSWER.search(response)
    return match and match[1].strip()


def score_response(response: str, truth: str, format_reward: float) -> float:
    """Exact match, of which `format_reward` is for a well-formed response, right or wrong (Search-R1 v0.3)."""
    answer = first_answer(response)
    right = answer is not None and normalise(answer) == normalise(truth)
    well_formed = WELL_FORMED.fullmatch(response) is not None
    return (1.0 - format_reward) * right + format_reward * well_formed
